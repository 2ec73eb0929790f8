import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from visionkit.errors import VisionKitError
from visionkit.reid import distances, knn
from visionkit.reid.distances import BlockDistances
from visionkit.reid.knn import SPARE_CANDIDATES, nearest_neighbours, paired_distances, self_neighbours


def expected_neighbours(query, gallery, k):
    distances = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1), distances.max(1)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_exact(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    r = np.random.RandomState(0)
    query, gallery = (r.standard_normal((n, 12)).astype(np.float32) for n in (50, 200))
    order, distances, _ = expected_neighbours(query, gallery, 9)
    found = nearest_neighbours(query, torch.from_numpy(gallery), 9, backend=backend)
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


def test_faiss_knows_float32_only():
    pytest.importorskip("faiss")
    r = np.random.RandomState(0)
    near = 1 + 1e-5 * r.standard_normal((300, 16))  # nearer to each other than float32's distances resolve
    order, distances, _ = expected_neighbours(near, near, 5)
    found = nearest_neighbours(near, near, 5, backend="faiss")
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 9))
def test_ties_rank_by_index(k, gallery, seed):
    r = np.random.RandomState(seed)
    query, points = (r.randint(0, 2, (n, 3)).astype(np.float32) for n in (4, gallery))
    order, distances, farthest = expected_neighbours(query, points, k)
    found = nearest_neighbours(query, points, k, farthest=True)
    assert found.indices.shape == order.shape
    assert (found.indices == order).all() and (found.distances == distances).all()
    assert (found.farthest == farthest).all()


def test_copies_beyond_the_spare_rank_by_index():
    points = np.random.RandomState(0).standard_normal((120, 16)).astype(np.float32)
    points[5:100] = points[5]
    order, distances, _ = expected_neighbours(points, points, 7)
    found = nearest_neighbours(points, points, 7)
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


@pytest.fixture
def work(monkeypatch):
    """Counts the preparations of a gallery, and the pairs of images whose distance is made exact."""
    done = dict(galleries=0, pairs=0)
    refine = knn._refine

    class Counted(knn.BlockDistances):
        def __init__(self, *arguments, **options):
            done["galleries"] += 1
            super().__init__(*arguments, **options)

    def counted(query, gallery, number, candidates):
        done["pairs"] += candidates.size
        return refine(query, gallery, number, candidates)

    monkeypatch.setattr(knn, "BlockDistances", Counted)
    monkeypatch.setattr(knn, "_refine", counted)
    return done


@pytest.mark.parametrize("kinds", [1, 7, 150])
def test_copies_cost_no_more_than_other_images(work, kinds):
    r = np.random.RandomState(0)
    points = r.standard_normal((kinds, 16)).astype(np.float32)[r.randint(0, kinds, 300)]
    points[100:150] = points[100]
    order, distances, _ = expected_neighbours(points, points, 7)
    found = nearest_neighbours(points, points, 7, backend="torch")
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    assert work["galleries"] == 2 and work["pairs"] <= 2 * 300 * (7 + SPARE_CANDIDATES)


def test_a_collapse_costs_no_more_than_other_images(work):
    r = np.random.RandomState(0)
    points = (r.standard_normal(64) + 1e-6 * r.standard_normal((300, 64))).astype(np.float32)  # and no two are equal
    order, distances, _ = expected_neighbours(points, points, 7)
    found = nearest_neighbours(points, points, 7, backend="torch")
    assert (found.indices == order).all()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)
    assert work["galleries"] == 2 and work["pairs"] <= 2 * 300 * (7 + SPARE_CANDIDATES)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(20, 60), st.integers(0, 99))
def test_many_copies_of_a_few_images_rank_by_distance_and_index(k, gallery, seed):
    r = np.random.RandomState(seed)
    points = r.choice([-1.0, -0.0, 0.0, 1.0], (gallery, 2)).astype(np.float32)  # zeros are equal, not in their bytes
    order, distances, _ = expected_neighbours(points[:9], points, k)
    found = nearest_neighbours(points[:9], points, k)
    assert (found.indices == order).all() and (found.distances == distances).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_are_the_same_under_autocast(metric):
    query, gallery = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(0))
    exact = BlockDistances(query, gallery, metric)(0, 30).clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(BlockDistances(query, gallery, metric)(0, 30), exact)


class Products(TorchFunctionMode):
    """Whether a GPU would take TF32, at each product."""

    def __init__(self):
        super().__init__()
        self.tf32 = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.matmul or function is torch.Tensor.__matmul__:
            matmul = torch.backends.cuda.matmul
            self.tf32.append(matmul.fp32_precision == "tf32")
        return function(*args, **kwargs or {})


def test_distances_are_never_taken_in_tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Products() as products:
            BlockDistances(*torch.randn(2, 30, 64))(0, 30)
        assert products.tf32 == [False] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("dtype", "fits"), [(np.float16, True), (np.float32, True), (np.float64, False)])
def test_a_gallery_moves_to_a_gpu_that_has_twice_its_room(dtype, fits, monkeypatch):
    moved = []
    rows = distances.rows
    monkeypatch.setattr(distances, "rows", lambda *where: moved.append(where[3:]) or rows(*where[:3]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9 * 100, 10**9))
    distances._kept_on(torch.device("cuda"), np.zeros((10, 10), dtype))
    assert ((torch.device("cuda"),) in moved) == fits


def test_each_row_leads_its_own_list():
    points = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)  # many copies: a row may miss its own list
    found = self_neighbours(points, 5)
    assert (found.indices[:, 0] == np.arange(60)).all()
    assert (found.distances == 0).all()
    assert all(len(set(row)) == 5 for row in found.indices)


def test_memory_map_and_half_precision(tmp_path):
    points = np.random.RandomState(0).standard_normal((40, 8)).astype(np.float16)
    np.save(tmp_path / "f.npy", points)
    mapped = np.load(tmp_path / "f.npy", mmap_mode="r")
    order, *_ = expected_neighbours(points[:7], points, 4)
    assert (nearest_neighbours(mapped[:7], mapped, 4).indices == order).all()
    pair = paired_distances(mapped, np.array([0, 1]), np.array([0, 5]))
    assert pair[0] == 0
    assert pair[1] == pytest.approx(((points[1].astype(float) - points[5]) ** 2).sum(), rel=1e-5)


def test_wrong_input():
    points = np.zeros((4, 2), np.float32)
    for arguments in ((points, points, 0), (points[:0], points, 1), (points, points[:, :1], 1), (points[0], points, 1)):
        with pytest.raises(VisionKitError):
            nearest_neighbours(*arguments)
    with pytest.raises(VisionKitError, match="backend"):
        nearest_neighbours(points, points, 1, backend="scann")


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(backend, value):
    if backend == "faiss":
        pytest.importorskip("faiss")
    points = np.random.RandomState(0).standard_normal((40, 4)).astype(np.float32)
    wrong = points.copy()
    wrong[7, 2] = value
    for query, gallery in ((wrong, points), (points, wrong), (wrong, wrong)):
        with pytest.raises(VisionKitError, match="NaN or infinite"):
            nearest_neighbours(query, gallery, 3, backend=backend)


class OnMps(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, *call):
        raise NotImplementedError


def test_what_lies_on_mps_is_compared_on_the_cpu():
    """For mps has no float64, by which neighbours and scores are decided."""
    features = torch.Tensor._make_wrapper_subclass(OnMps, (2, 3), device="mps")
    assert distances.default_device(features).type == "cpu"
    assert distances.default_device(torch.empty(2, 3, device="meta")).type == "meta"


def test_faiss_is_not_chosen_beside_torch_on_macos(monkeypatch):
    pytest.importorskip("faiss")
    assert knn._use_faiss("auto", "cpu")
    monkeypatch.setattr("sys.platform", "darwin")
    assert not knn._use_faiss("auto", "cpu") and knn._use_faiss("faiss", "cpu")
