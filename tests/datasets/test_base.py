import os
import pickle
import shutil
import warnings

import pytest
import reid_trees
import torch
from torch.utils.data import DataLoader

from visionkit.datasets import DukeMTMCreID, Market1501, PseudoLabelDataset, train_transforms
from visionkit.datasets.base import Sample, relabel
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS

LIST = [dict(type="visionkit.Resize", size=(16, 8)), dict(type="visionkit.ToTensor")]


def test_train_relabels_in_sorted_order_with_0_based_cameras(market):
    dataset = Market1501(market, "train")
    assert dataset.num_pids == 3 and len(dataset) == 12
    assert sorted(set(dataset.pids)) == [0, 1, 2] and sorted(set(dataset.camids)) == [0, 1, 2]
    raw = {sample.pid: os.path.basename(sample.path)[:4] for sample in dataset.samples}
    assert raw == {0: "0002", 1: "0007", 2: "0011"}
    assert [sample.path for sample in dataset.samples] == sorted(sample.path for sample in dataset.samples)


def test_distractors_stay_in_the_gallery_and_junk_nowhere(market):
    for folder in ("bounding_box_train", "query"):
        reid_trees.write_image(market / folder / reid_trees.market_name(0, 1, 1), 0)
        reid_trees.write_image(market / folder / reid_trees.market_name(-1, 1, 1), 0)
    gallery = Market1501(market, "gallery")
    assert set(gallery.pids) == {0, 1, 3} and len(gallery) == 9
    assert set(Market1501(market, "query").pids) == {1, 3}
    assert Market1501(market, "train").num_pids == 3


def test_item_and_batch(market):
    dataset = DATASETS.build(dict(type="visionkit.Market1501", root=str(market), split="train", transforms=LIST))
    item = dataset[5]
    assert item["image"].shape == (3, 16, 8) and item["image"].dtype == torch.float32
    assert item["index"] == 5 and item["path"] == dataset.samples[5].path and item["pid"] == dataset.pids[5]
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["image"].shape == (4, 3, 16, 8) and batch["pid"].dtype == torch.int64 and len(batch["path"]) == 4


def test_root_may_be_the_parent(market):
    assert Market1501(market.parent, "train").root == market


def test_duke(tmp_path):
    root = reid_trees.write_duke(tmp_path / "DukeMTMC-reID")
    assert DukeMTMCreID(tmp_path, "train").num_pids == 3
    assert set(DukeMTMCreID(root, "gallery").pids) == {0, 1, 3}


def test_missing_root_names_tree_and_source(tmp_path):
    with pytest.raises(
        VisionKitError, match=r"Market1501: root .*nowhere is no folder; expected Market-1501-v15.09.15 "
    ):
        Market1501(tmp_path / "nowhere", "train")


def test_half_tree_names_what_is_missing(market):
    shutil.rmtree(market / "query")
    with pytest.raises(VisionKitError, match=r"v15.09.15 lacks query; expected .* see datasets/market1501.md"):
        Market1501(market, "train")


def test_empty_gallery(market):
    shutil.rmtree(market / "bounding_box_test")
    (market / "bounding_box_test").mkdir()
    with pytest.raises(VisionKitError, match="gallery split under .* is empty"):
        Market1501(market, "gallery")


def test_unparsable_name_is_named_but_hidden_and_other_files_are_not(market):
    (market / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")
    (market / "bounding_box_train" / "._0002_c1s1_000001_01.jpg").write_bytes(b"x")
    assert len(Market1501(market, "train")) == 12
    reid_trees.write_image(market / "bounding_box_train" / "holiday.jpg", 0)
    with pytest.raises(VisionKitError, match="holiday.jpg: Market1501 names start with"):
        Market1501(market, "train")


def test_counts_differ_is_a_warning(market):
    with pytest.warns(UserWarning, match="3 identities in 12 images, published with 751 in 12936"):
        Market1501(market, "train")
    (market.parent / "SYNTHETIC.txt").write_text("a stand-in says so and needs no warning")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Market1501(market, "train")


def test_wrong_split_and_options(market):
    with pytest.raises(VisionKitError, match="split='test'"):
        Market1501(market, "test")
    with pytest.raises(VisionKitError, match="belong to the train split"):
        Market1501(market, "query", include_test=True)
    with pytest.raises(VisionKitError, match="expected dict"):
        Market1501(market, "train", styled=dict(folder="x"))


def test_include_test_gives_new_labels_without_distractors(market):
    dataset = Market1501(market, "train", include_test=True)
    assert dataset.num_pids == 5 and set(dataset.pids) == set(range(5))
    assert len(dataset) == 12 + 2 + 8
    names = {os.path.basename(sample.path)[:4]: sample.pid for sample in dataset.samples}
    assert names == {"0002": 0, "0007": 1, "0011": 2, "0001": 3, "0003": 4}


def test_relabel_keeps_equal_numbers_of_train_and_test_apart():
    rows = relabel([Sample("a", 5, 0), Sample("b", 0, 0)], [Sample("c", 0, 0), Sample("d", 5, 0)])
    assert [row.pid for row in rows] == [1, 0, 2, 3]


def test_repeat_bit_for_bit_also_with_workers(market):
    dataset = Market1501(market, "train", train_transforms((16, 8), pad=2, erasing=0.5))

    def run(workers):
        torch.manual_seed(3)
        loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers)
        return torch.cat([batch["image"] for batch in loader])

    assert torch.equal(run(0), run(0)) and torch.equal(run(2), run(2))
    assert len(torch.unique(run(0)[:, 0, 0, 0])) > 3


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff\xe0 no picture", "cut"])
def test_unreadable_file_warns_once_in_training_and_stops_an_evaluation(market, damage):
    dataset = Market1501(market, "train", LIST)
    broken = dataset.samples[5].path
    content = open(broken, "rb").read()
    open(broken, "wb").write(content[: len(content) // 2] if damage == "cut" else damage)
    with pytest.warns(UserWarning, match=os.path.basename(broken)) as caught:
        item = dataset[5]
        assert torch.equal(dataset[5]["image"], item["image"])
    assert len([w for w in caught if "training goes on" in str(w.message)]) == 1
    assert item["index"] == 5 and item["pid"] == dataset.pids[5] and item["path"] == dataset.samples[6].path
    assert dataset.pids[6] == dataset.pids[5]

    query = Market1501(market, "query", LIST)
    open(query.samples[0].path, "wb").write(b"")
    with pytest.raises(VisionKitError, match=os.path.basename(query.samples[0].path)):
        query[0]


def test_identity_without_any_readable_image_falls_to_the_next_row(market):
    dataset = Market1501(market, "train", LIST)
    for row in (8, 9, 10, 11):
        open(dataset.samples[row].path, "wb").close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        item = dataset[10]
        assert item["pid"] == dataset.pids[0] and item["path"] == dataset.samples[0].path and item["index"] == 10
        for sample in dataset.samples:
            open(sample.path, "wb").close()
        with pytest.raises(VisionKitError, match="no image under"):
            dataset[0]


def test_error_of_a_loader_worker_keeps_its_line(market):
    query = Market1501(market, "query", LIST)
    open(query.samples[0].path, "wb").close()
    with pytest.raises(VisionKitError) as caught:
        list(DataLoader(query, num_workers=1))
    assert "\n" not in str(caught.value) and query.samples[0].path in str(caught.value)


def test_warning_once_over_workers_and_epochs(market, tmp_path):
    dataset = Market1501(market, "train", LIST)
    open(dataset.samples[0].path, "wb").close()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: open(tmp_path / "log", "a").write(str(message))  # as workers see it
        for _ in range(2):
            list(DataLoader(dataset, batch_size=6, num_workers=2))
    assert (tmp_path / "log").read_text().count("training goes on") == 1


def test_memory_cache_gives_the_same_items_and_survives_workers(market):
    plain = Market1501(market, "train", LIST)
    cached = Market1501(market, "train", LIST, cache="memory", cache_size=(16, 8))
    list(DataLoader(cached, num_workers=2))
    for sample in cached.samples:
        os.rename(sample.path, sample.path + ".away")
    items = [cached[row]["image"] for row in range(len(cached))]
    for sample in cached.samples:
        os.rename(sample.path + ".away", sample.path)
    assert all(torch.equal(image, plain[row]["image"]) for row, image in enumerate(items))


@pytest.mark.parametrize("options", [dict(cache="disk"), dict(cache="memory"), dict(cache="memory", cache_size=(8, 0))])
def test_bad_cache_options(market, options):
    with pytest.raises(VisionKitError, match="cache"):
        Market1501(market, "train", **options)


def test_spawned_workers_get_a_copy_without_the_cached_pixels(market):
    dataset = Market1501(market, "train", LIST, cache="memory", cache_size=(512, 512))
    content = pickle.dumps(dataset)
    assert len(content) < 20_000
    copy = pickle.loads(content)
    assert copy.samples == dataset.samples and torch.equal(copy[3]["image"], dataset[3]["image"])


def test_with_transforms_leaves_the_first_alone(market):
    dataset = Market1501(market, "train", LIST)
    other = dataset.with_transforms([dict(type="visionkit.Resize", size=(4, 4)), dict(type="visionkit.ToTensor")])
    assert dataset[0]["image"].shape == (3, 16, 8) and other[0]["image"].shape == (3, 4, 4)
    assert PseudoLabelDataset(dataset).unlabelled(LIST)[0]["pid"] == -1
