import os

import numpy as np
import pytest
import reid_trees
from torch.utils.data import DataLoader

from visionkit.datasets import Market1501, PseudoLabelDataset, QueryGallery, RandomMultipleGallerySampler
from visionkit.errors import VisionKitError

LIST = [dict(type="visionkit.Resize", size=(16, 8)), dict(type="visionkit.ToTensor")]


@pytest.fixture
def pseudo(market):
    return PseudoLabelDataset(dict(type="visionkit.Market1501", root=str(market), split="train", transforms=LIST))


def test_pseudo_labels_replace_identities(pseudo):
    assert len(pseudo) == 12 and pseudo.num_pids == 0 and {pseudo[row]["pid"] for row in range(12)} == {-1}
    labels = np.array([4, -1, 4, 0, 0, 1, 1, -1, 2, 2, 3, 3])
    pseudo.set_labels(labels)
    assert len(pseudo) == 10 and pseudo.num_pids == 5
    assert pseudo.pids == [4, 4, 0, 0, 1, 1, 2, 2, 3, 3]
    for position in range(len(pseudo)):
        item = pseudo[position]
        assert item["pid"] == labels[item["index"]] == pseudo.pids[position]
        assert item["camid"] == pseudo.camids[position] and set(item) == {"image", "pid", "camid", "index", "path"}


def test_true_identities_never_leak(pseudo, market):
    """With identities permuted on the disk's side nothing but the file names in ``path`` may change."""
    labels = np.arange(12) % 5
    pseudo.set_labels(labels)
    first = [pseudo[row]["pid"] for row in range(12)]
    pseudo.dataset.pids = [99] * 12
    pseudo.dataset.samples = [sample._replace(pid=99) for sample in pseudo.dataset.samples]
    assert [pseudo[row]["pid"] for row in range(12)] == first == labels.tolist()
    assert 99 not in pseudo.pids and pseudo.num_pids == 5


def test_a_stand_in_is_chosen_by_label_not_by_identity(pseudo):
    pseudo.set_labels(np.array([0, 1, 1, 1, 0, -1, 2, 2, 2, 2, 2, 2]))
    open(pseudo.dataset.samples[0].path, "wb").close()
    with pytest.warns(UserWarning, match="training goes on"):
        item = pseudo[0]
    assert item["path"] == pseudo.dataset.samples[4].path and item["pid"] == 0 and item["index"] == 0


@pytest.mark.filterwarnings("ignore:.*training goes on")
def test_noise_never_stands_in_for_a_labelled_image(pseudo):
    pseudo.set_labels(np.array([0, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1, 1]))
    open(pseudo.dataset.samples[0].path, "wb").close()
    assert pseudo[0]["path"] == pseudo.dataset.samples[3].path and pseudo[0]["pid"] == 1


@pytest.mark.parametrize(
    "labels", [np.zeros(3, int), np.zeros(12), np.full(12, -1), np.full(12, -2), np.zeros((12, 1), int)]
)
def test_bad_labels(pseudo, labels):
    with pytest.raises(VisionKitError, match="pseudo-labels"):
        pseudo.set_labels(labels)


def test_pseudo_labels_need_a_train_split(market):
    with pytest.raises(VisionKitError, match="wraps a train split"):
        PseudoLabelDataset(Market1501(market, "query"))


def test_sampler_sees_new_labels(pseudo):
    sampler = RandomMultipleGallerySampler(pseudo, 2)
    with pytest.raises(VisionKitError, match=r"no labelled image|pseudo-labels"):
        list(sampler)
    pseudo.set_labels(np.array([0] * 6 + [-1] * 3 + [1] * 3))
    rows = list(sampler)
    assert len(rows) == 4 and len(sampler) == 4 and {pseudo.pids[row] for row in rows} == {0, 1}


def test_query_gallery(market):
    both = QueryGallery(dict(type="visionkit.Market1501", root=str(market), transforms=LIST))
    assert len(both) == 2 + 9 and both.metainfo == dict(name="Market1501", trials=None)
    batch = next(iter(DataLoader(both, batch_size=11)))
    assert batch["role"].tolist() == [0] * 2 + [1] * 9 and batch["index"].tolist() == list(range(11))
    assert batch["pid"].tolist() == both.pids and batch["camid"].tolist() == both.camids
    assert [os.path.basename(path) for path in batch["path"][:2]] == [
        "0001_c1s1_000901_01.jpg",
        "0003_c1s1_000903_01.jpg",
    ]


def test_no_identity_with_a_second_camera(tmp_path):
    root = reid_trees.write_market(tmp_path, cams=1)
    with pytest.raises(VisionKitError, match="under another camera"):
        QueryGallery(dict(type="visionkit.Market1501", root=str(root)))


def test_query_gallery_takes_no_split(market):
    with pytest.raises(VisionKitError, match="leave split out"):
        QueryGallery(dict(type="visionkit.Market1501", root=str(market), split="query"))
