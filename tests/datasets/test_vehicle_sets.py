"""The trees of VeRi-776, VehicleID and VERI-Wild."""

import numpy as np
import pytest
import reid_trees

from visionkit.datasets import QueryGallery, VehicleID, VeRi776, VERIWild
from visionkit.errors import VisionKitError


def test_veri776(tmp_path):
    root = tmp_path / "VeRi"
    for folder, pids, cams in (
        ("image_train", (1, 4), (1, 20)),
        ("image_query", (2,), (3,)),
        ("image_test", (2,), (3, 12)),
    ):
        for pid in pids:
            for cam in cams:
                reid_trees.write_image(root / folder / f"{pid:04d}_c{cam:03d}_00016450_0.jpg", pid)
    train = VeRi776(root, "train")
    assert train.num_pids == 2 and set(train.camids) == {0, 19}
    assert VeRi776(root, "gallery").camids == [2, 11]
    both = VeRi776(root, "train", include_test=True)
    assert len(both) == 4 + 2 and both.num_pids == 3  # the query lies in the gallery too and counts once


@pytest.fixture
def vehicle_id(tmp_path):
    root = tmp_path / "VehicleID_V1.0"
    lists = dict(
        train_list=[(1, 50), (2, 50), (3, 9)], test_list_800=[(i, 60 + i % 3) for i in range(10, 22)] + [(30, 99)]
    )
    for name, rows in lists.items():
        (root / "train_test_split").mkdir(parents=True, exist_ok=True)
        (root / "train_test_split" / f"{name}.txt").write_text("".join(f"{image:07d} {vid}\n" for image, vid in rows))
        for image, vid in rows:
            reid_trees.write_image(root / "image" / f"{image:07d}.jpg", vid)
    return root


def test_vehicle_id(vehicle_id):
    train = VehicleID(vehicle_id, "train")
    assert train.num_pids == 2 and train.camids == [0, 0, 0]
    galleries = set()
    for trial in range(10):
        query, gallery = (VehicleID(vehicle_id, split, trial=trial) for split in ("query", "gallery"))
        assert sorted(gallery.pids) == [60, 61, 62, 99] and len(query) == 9 and 99 not in query.pids
        assert set(query.camids) == {0} and set(gallery.camids) == {1}  # nothing is filtered as the same camera
        assert not {s.path for s in query.samples} & {s.path for s in gallery.samples}
        galleries.add(tuple(s.path for s in gallery.samples))
    assert len(galleries) > 3
    assert VehicleID(vehicle_id, "gallery", trial=9).samples == gallery.samples


def test_vehicle_id_trials_over_one_extraction(vehicle_id):
    both = QueryGallery(dict(type="visionkit.VehicleID", root=str(vehicle_id), trial=3))
    trials = both.metainfo["trials"]
    assert trials.shape == (10, 13) and trials[3].tolist() == both.roles
    for trial in (0, 7):
        gallery = {s.path for s in VehicleID(vehicle_id, "gallery", trial=trial).samples}
        assert {s.path for s, role in zip(both.samples, trials[trial]) if role} == gallery
    assert (np.array([sum(r) for r in trials]) == 4).all()


def test_vehicle_id_errors(vehicle_id):
    with pytest.raises(VisionKitError, match="subset=900"):
        VehicleID(vehicle_id, "query", subset=900)
    with pytest.raises(VisionKitError, match="trial=10"):
        VehicleID(vehicle_id, "query", trial=10)
    with pytest.raises(VisionKitError, match="lacks train_test_split/test_list_1600.txt"):
        VehicleID(vehicle_id, "query", subset=1600)
    (vehicle_id / "image" / "0000002.jpg").unlink()
    with pytest.raises(VisionKitError, match="1 of 3 listed images are missing"):
        VehicleID(vehicle_id, "train")
    (vehicle_id / "train_test_split" / "train_list.txt").write_text("0000001\n")
    with pytest.raises(VisionKitError, match="train_list.txt, line 1: expected"):
        VehicleID(vehicle_id, "train")


def write_veri_wild(root, header=True, suffix=""):
    info = ["id/image;Camera ID;Time;Model;Type;Color"] if header else []
    lists = {
        "train_list": [(1, 1, 1), (1, 2, 174)],
        f"test_3000{suffix}_query": [(5, 7, 3)],
        f"test_3000{suffix}": [(5, 8, 4)],
    }
    for name, rows in lists.items():
        (root / "train_test_split").mkdir(parents=True, exist_ok=True)
        lines = [f"{vid:05d}/{image:06d}.jpg" for vid, image, _ in rows]
        (root / "train_test_split" / f"{name}.txt").write_text("\n".join(lines))
        for line, (vid, _, cam) in zip(lines, rows):
            reid_trees.write_image(root / "images" / line, vid)
            info.append(f"{line[:-4]};{cam};2018-03-11 12:00:00;Audi;SUV;black")
    (root / "train_test_split" / "vehicle_info.txt").write_text("\n".join(info))
    return root


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("suffix", ["", "_id"])
def test_veri_wild(tmp_path, header, suffix):
    """The first vehicle keeps its own camera whether or not a header line precedes it."""
    root = write_veri_wild(tmp_path / "VERI-Wild", header, suffix)
    train = VERIWild(tmp_path, "train")
    assert train.root == root and train.camids == [0, 173] and train.num_pids == 1
    assert [(s.pid, s.camid) for s in VERIWild(root, "query").samples] == [(5, 2)]
    assert [(s.pid, s.camid) for s in VERIWild(root, "gallery").samples] == [(5, 3)]


def test_veri_wild_errors(tmp_path):
    root = write_veri_wild(tmp_path / "VERI-Wild")
    with pytest.raises(VisionKitError, match="subset=800"):
        VERIWild(root, "train", subset=800)
    with pytest.raises(
        VisionKitError, match="lacks train_test_split/test_5000.txt, train_test_split/test_5000_query.txt"
    ):
        VERIWild(root, "train", subset=5000)
    info = root / "train_test_split" / "vehicle_info.txt"
    info.write_text("\n".join(info.read_text().splitlines()[:2]))
    with pytest.raises(VisionKitError, match="00001/000002 has no line in vehicle_info.txt"):
        VERIWild(root, "train")
    info.write_text("header\n00001/000001;1\nrubbish\n")
    with pytest.raises(VisionKitError, match="vehicle_info.txt, line 3: expected"):
        VERIWild(root, "train")
