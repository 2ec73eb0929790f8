"""The trees of CUHK03-NP and MSMT17."""

import shutil

import pytest
import reid_trees

from visionkit.datasets import CUHK03NP, MSMT17, QueryGallery
from visionkit.errors import VisionKitError


@pytest.fixture
def cuhk(tmp_path):
    for boxes, folders in dict(detected=(1, 2), labeled=(1, 2, 3)).items():
        for folder, pids in (("bounding_box_train", folders), ("bounding_box_test", (200,)), ("query", (200,))):
            for pid in pids:
                for cam in (1, 2):
                    reid_trees.write_image(
                        tmp_path / "cuhk03-np" / boxes / folder / f"{pid:04d}_c{cam}_{cam * 7}.png", pid
                    )
    return tmp_path / "cuhk03-np"


def test_cuhk03(cuhk):
    assert CUHK03NP(cuhk, "train").num_pids == 2
    labeled = CUHK03NP(cuhk, "train", boxes="labeled")
    assert labeled.num_pids == 3 and set(labeled.camids) == {0, 1} and "labeled" in labeled.samples[0].path
    assert QueryGallery(dict(type="visionkit.CUHK03NP", root=str(cuhk))).pids == [200] * 4


def test_cuhk03_errors(cuhk):
    with pytest.raises(VisionKitError, match='expected "detected" or "labeled"'):
        CUHK03NP(cuhk, "train", boxes="manual")
    shutil.rmtree(cuhk / "labeled" / "query")
    with pytest.raises(VisionKitError, match="lacks labeled/query"):
        CUHK03NP(cuhk, "train", boxes="labeled")
    assert CUHK03NP(cuhk, "train").num_pids == 2


def write_msmt(root, train="train", test="test"):
    lists = dict(train=[], val=[], query=[], gallery=[])
    for part, folder, pids, cams in (
        ("train", train, (0, 1), (1, 15)), ("val", train, (0, 1), (4,)), ("query", test, (0, 1), (1,)),
        ("gallery", test, (0, 1), (2, 15)),
    ):  # fmt: skip
        for pid in pids:
            for cam in cams:
                name = f"{pid:04d}/{pid:04d}_{cam:03d}_{cam:02d}_0303morning_{cam:04d}_0.jpg"
                reid_trees.write_image(root / folder / name, pid)
                lists[part].append(f"{name} {pid}")
    for part, lines in lists.items():
        (root / f"list_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    "version, folders", [("MSMT17_V1", ("train", "test")), ("MSMT17_V2", ("mask_train_v2", "mask_test_v2"))]
)
@pytest.mark.parametrize("parent", [False, True])
def test_msmt17(tmp_path, version, folders, parent):
    root = write_msmt(tmp_path / version, *folders)
    given = tmp_path if parent else root
    dataset = MSMT17(given, "train")
    assert dataset.root == root and len(dataset) == 6 and dataset.num_pids == 2
    assert set(dataset.camids) == {0, 3, 14}
    assert len(MSMT17(given, "train", include_val=False)) == 4
    assert MSMT17(given, "query").pids == [0, 1]  # 0 is a person here
    assert MSMT17(given, "train", include_test=True).num_pids == 4


def test_msmt17_errors(tmp_path):
    root = write_msmt(tmp_path / "MSMT17_V1")
    write_msmt(tmp_path / "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    with pytest.raises(VisionKitError, match="holds versions 1 and 2"):
        MSMT17(tmp_path, "train")
    (root / "test" / "0001" / "0001_002_02_0303morning_0002_0.jpg").unlink()
    with pytest.raises(VisionKitError, match="1 of 4 listed images are missing, first .*0001_002_02"):
        MSMT17(root, "gallery")
    (root / "list_query.txt").write_text("0000/strange.jpg 0\n")
    with pytest.raises(VisionKitError, match="list_query.txt, line 1: expected"):
        MSMT17(root, "query")
    (root / "list_query.txt").write_text("")
    with pytest.raises(VisionKitError, match="query split under .* is empty"):
        MSMT17(root, "query")
    (root / "list_val.txt").unlink()
    with pytest.raises(VisionKitError, match="MSMT17_V1 lacks list_val.txt"):
        MSMT17(root, "query")
