import re
from pathlib import Path

import pytest
import reid_trees

from visionkit.datasets import FolderReID, QueryGallery, UnlabelledFolder
from visionkit.datasets.folder import PATTERN
from visionkit.errors import VisionKitError


@pytest.mark.parametrize(
    "path, pid, camid",
    [
        ("0002_c1s1_000451_03.jpg", "0002", "1"),
        ("anna/cam2_17.jpg", "anna", "2"),
        ("anna/camera_12-3.png", "anna", "12"),
        ("anna_2_17.jpg", "anna", "2"),
        ("shop/0002_c1_5.jpg", "0002", "1"),
        ("-1_c3s1_000451_03.jpg", "-1", "3"),
    ],
)
def test_default_pattern(path, pid, camid):
    match = re.search(PATTERN, path)
    assert (match["pid"], match["camid"]) == (pid, camid)


@pytest.mark.parametrize("path", ["person0002/door_00.jpg", "anna/IMG_2034.jpg", "anna/2_17.jpg", "anna/cat_1.jpg"])
def test_numbers_of_frames_are_no_cameras(path):
    assert re.search(PATTERN, path) is None


def test_an_unlabelled_folder_has_cameras_and_no_identities(tmp_path):
    for name in ("door/1.jpg", "door/monday/2.jpg", "lift/1.png", "3.jpg", ".trash/4.jpg", "lift/.5.jpg"):
        reid_trees.write_image(tmp_path / "site" / name, 0)
    reid_trees.write_image(tmp_path / "elsewhere" / "6.jpg", 0)
    (tmp_path / "site" / "yard").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "site" / "door" / "again").symlink_to(tmp_path / "site")  # a loop
    data = UnlabelledFolder(tmp_path / "site", "train")
    names = [path.relative_to(tmp_path / "site").as_posix() for path in (Path(s.path) for s in data.samples)]
    assert names == ["3.jpg", "door/1.jpg", "door/monday/2.jpg", "lift/1.png", "yard/6.jpg"]
    assert data.camids == [0, 1, 1, 2, 3] and set(data.pids) == {0}
    with pytest.raises(VisionKitError, match="no identities to test on"):
        UnlabelledFolder(tmp_path / "site", "query")
    (tmp_path / "none").mkdir()
    with pytest.raises(VisionKitError, match="is empty; expected crops in it"):
        UnlabelledFolder(tmp_path / "none", "train")


def test_identities_beyond_64_bits_are_numbered(tmp_path):
    for pid in ("20261129013640000001", "20261129013640000002"):
        reid_trees.write_image(tmp_path / "train" / f"{pid}_c1_0.jpg", 0)
        for split in ("query", "gallery"):
            reid_trees.write_image(tmp_path / split / f"{pid}_c{1 + (split == 'query')}_0.jpg", 0)
    assert FolderReID(tmp_path, "query").pids == [0, 1]


def test_sub_folders_are_the_splits(tmp_path):
    for split, people in dict(train=("anna", "bert"), query=("carl",), gallery=("carl",)).items():
        for person in people:
            cam = 5 if split == "query" else 9
            reid_trees.write_image(tmp_path / split / person / f"cam{cam}_1.jpg", 0)
    train, query = FolderReID(tmp_path, "train"), FolderReID(tmp_path, "query")
    assert train.pids == [0, 1] and train.camids == [8, 8]  # cameras keep their numbers, counted from 0
    assert query.pids == FolderReID(tmp_path, "gallery").pids == [2] and query.camids == [4]


@pytest.mark.parametrize("in_splits", [False, True])
def test_images_of_one_name_are_all_of_train_and_test(tmp_path, in_splits):
    for number, person in enumerate(("anna", "bert", "carl", "dora", "emil", "fred")):
        for cam in (1, 2):
            for frame in (0, 1):
                split = ("query", "gallery")[frame] if number > 2 else "train"
                place = tmp_path / split if in_splits else tmp_path
                reid_trees.write_image(place / person / f"cam{cam}_{frame}.jpg", number)
    if in_splits:  # as VeRi's queries, which lie in the gallery too
        (tmp_path / "gallery" / "fred" / "cam1_0.jpg").symlink_to(tmp_path / "query" / "fred" / "cam1_0.jpg")
    everything = FolderReID(tmp_path, "train", include_test=True)
    assert len(everything) == 24 and everything.num_pids == 6


@pytest.fixture
def flat(tmp_path):
    for pid in range(8):
        for cam in (1, 2) if pid < 7 else (1,):
            for frame in range(3):
                reid_trees.write_image(tmp_path / f"{pid:03d}_c{cam}_{frame}.jpg", pid)
    return tmp_path


def test_flat_folder_is_divided_by_a_seeded_rule(flat):
    splits = {split: FolderReID(flat, split, seed=2) for split in ("train", "query", "gallery")}
    paths = [{s.path for s in dataset.samples} for dataset in splits.values()]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 45
    test = set(splits["gallery"].pids)
    assert splits["train"].num_pids == 4 and len(test) == 4
    train_names = {s.path.split("/")[-1][:3] for s in splits["train"].samples}
    assert not train_names & {f"{pid:03d}" for pid in test}
    assert sorted(splits["query"].pids) == sorted(
        2 * list(test - {7})
    )  # one per camera; 7 was seen by one camera alone
    assert FolderReID(flat, "query", seed=2).samples == splits["query"].samples
    assert any(FolderReID(flat, "train", seed=s).samples != splits["train"].samples for s in range(5))
    QueryGallery(dict(type="visionkit.FolderReID", root=str(flat), seed=2))


def test_one_more_person_changes_no_others_side(flat):
    def sides():
        return {split: FolderReID(flat, split).samples for split in ("train", "query", "gallery")}

    before = sides()
    reid_trees.write_image(flat / "0000b_c1_0.jpg", 0)  # the first by name, so that all numbers move
    reid_trees.write_image(flat / "0000b_c2_0.jpg", 0)
    after = sides()
    for split in before:
        old, new = ({Path(sample.path).name for sample in side[split]} for side in (before, after))
        assert len({name[:3] for name in old - new}) <= 1, split  # at most one makes room


def test_a_broken_link_is_no_list_s_missing_file(tmp_path):
    for pid in range(4):
        for cam in (1, 2):
            reid_trees.write_image(tmp_path / "site" / f"{pid}_c{cam}_0.jpg", pid)
    (tmp_path / "site" / "9_c1_0.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for dataset in (UnlabelledFolder, FolderReID):
        assert len(dataset(tmp_path / "site", "train")) > 0


def test_splits_in_capitals_are_no_identities(tmp_path):
    reid_trees.write_image(tmp_path / "Query" / "1_c1_0.jpg", 0)
    if not (tmp_path / "query").is_dir():  # as on a Mac
        with pytest.raises(VisionKitError, match="Query: is no split's name; rename it to query"):
            FolderReID(tmp_path, "train")


def test_identities_in_train_and_query_are_told(tmp_path):
    for split, pids in dict(train=(-1, 1, 2), query=(-1, 2, 3), gallery=(2, 3)).items():
        for pid in pids:
            reid_trees.write_image(tmp_path / split / f"{pid}_c{1 + (split == 'gallery')}_0.jpg", 0)
    with pytest.warns(UserWarning, match="FolderReID: 1 of 2 identities in .*query are in train, too"):
        FolderReID(tmp_path, "query")


def test_a_pattern_s_optional_group_that_finds_nothing_names_the_image(tmp_path):
    reid_trees.write_image(tmp_path / "x.jpg", 0)
    with pytest.raises(VisionKitError, match="x.jpg: the pattern finds no identity and camera"):
        FolderReID(tmp_path, "train", pattern=r"(?P<pid>\w)(_c(?P<camid>\d))?")


def test_own_pattern(tmp_path):
    reid_trees.write_image(tmp_path / "train" / "kam-a" / "p17-1.jpg", 0)
    reid_trees.write_image(tmp_path / "train" / "kam-b" / "p4-1.jpg", 0)
    (tmp_path / "query").mkdir()
    (tmp_path / "gallery").mkdir()
    dataset = FolderReID(tmp_path, "train", pattern=r"kam-(?P<camid>\w)/p(?P<pid>\d+)")
    assert dataset.pids == [1, 0] and dataset.camids == [0, 1]
    with pytest.raises(VisionKitError, match="query split under .* is empty"):
        FolderReID(tmp_path, "query", pattern=r"kam-(?P<camid>\w)/p(?P<pid>\d+)")


def test_errors(tmp_path):
    with pytest.raises(VisionKitError, match="is no folder; expected crops in"):
        FolderReID(tmp_path / "none", "train")
    with pytest.raises(VisionKitError, match="train split under .* is empty"):
        FolderReID(tmp_path, "train")
    with pytest.raises(VisionKitError, match="no regular expression"):
        FolderReID(tmp_path, "train", pattern="(")
    with pytest.raises(VisionKitError, match="expected the groups"):
        FolderReID(tmp_path, "train", pattern=r"(\d+)_c(\d+)")
    with pytest.raises(VisionKitError, match="train_share"):
        FolderReID(tmp_path, "train", train_share=1.0)
    reid_trees.write_image(tmp_path / "portrait.jpg", 0)
    with pytest.raises(VisionKitError, match="portrait.jpg: the pattern finds no identity and camera"):
        FolderReID(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(VisionKitError, match="lacks query, gallery"):
        FolderReID(tmp_path, "train")


def test_pairs_of_images_are_asked_and_found(tmp_path):
    for pid in range(8):
        for cam in (1, 2):
            reid_trees.write_image(tmp_path / f"{pid:03d}_c{cam}.jpg", pid)
    query, gallery = (FolderReID(tmp_path, split) for split in ("query", "gallery"))
    assert len(query) == len(gallery) == 4 and sorted(query.pids) == sorted(gallery.pids)
    QueryGallery(dict(type="visionkit.FolderReID", root=str(tmp_path)))


@pytest.mark.parametrize("images, asking", [((3, 1), [1]), ((1, 1, 1), [1, 2]), ((2, 2, 1), [0, 1, 2]), ((4,), [])])
def test_every_query_finds_an_image_of_another_camera(tmp_path, images, asking):
    for pid in range(4):
        for cam, count in enumerate(images):
            for frame in range(count):
                reid_trees.write_image(tmp_path / f"{pid:03d}_c{cam + 1}_{frame}.jpg", pid)
    reid_trees.write_image(tmp_path / "004_c1_0.jpg", 4)
    reid_trees.write_image(tmp_path / "004_c2_0.jpg", 4)
    gallery = FolderReID(tmp_path, "gallery", train_share=0.01)
    query = FolderReID(tmp_path, "query", train_share=0.01)
    assert sorted(camid for pid, camid in zip(query.pids, query.camids) if pid == 0) == asking
    for pid, camid in zip(query.pids, query.camids):
        assert {c for p, c in zip(gallery.pids, gallery.camids) if p == pid} - {camid}


def test_cameras_keep_their_numbers(tmp_path):
    for cam in ("0", "01", "5"):
        reid_trees.write_image(tmp_path / "train" / f"0002_c{cam}_7.jpg", 0)
    (tmp_path / "query").mkdir()
    (tmp_path / "gallery").mkdir()
    assert sorted(FolderReID(tmp_path, "train").camids) == [-1, 0, 4]


def test_one_camera_gives_no_query(tmp_path):
    for pid in range(4):
        reid_trees.write_image(tmp_path / f"{pid}_c1_0.jpg", pid)
    with pytest.raises(VisionKitError, match="query split under .* is empty"):
        FolderReID(tmp_path, "query")
