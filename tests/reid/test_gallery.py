import numpy as np
import pytest
from safetensors.numpy import save_file

from visionkit.errors import VisionKitError
from visionkit.reid.gallery import GalleryIndex


def points(number, dim=8, seed=0):
    return np.random.RandomState(seed).standard_normal((number, dim)).astype(np.float32)


def names(number, start=0):
    return [f"dir/ü image {i}.jpg" for i in range(start, start + number)]


def made(tmp_path, sizes=(30, 12)):
    index = GalleryIndex("CoreReID-1", "w.pth")
    for number, size in enumerate(sizes):
        index.add(points(size, seed=number), names(size, len(index)))
    index.save(tmp_path / "index")
    return index


def expected(features, query, topk):
    distances = np.sqrt(((query[:, None].astype(np.float64) - features[None]) ** 2).sum(2))
    order = np.argsort(distances, axis=1)[:, :topk]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("approximate", [None, "hnsw", "ivf"])
def test_search_after_loading_and_adding(tmp_path, approximate):
    if approximate:
        pytest.importorskip("faiss")
    made(tmp_path)
    index = GalleryIndex.load(tmp_path / "index", "CoreReID-1")
    assert len(index) == 42 and index.weights == "w.pth"
    index.search(points(1), 1, approximate)  # what faiss keeps must take in what is added later
    index.add(points(5, seed=9), names(5, 42))
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    assert again.paths == names(47)
    features = np.concatenate([points(30), points(12, seed=1), points(5, seed=9)])
    query = np.concatenate([points(3, seed=4), features[-1:]])
    order, distances = expected(features, query, 6)
    for row, matches in enumerate(again.search(query, 6, approximate)):
        assert [match.path for match in matches] == [names(47)[i] for i in order[row]]
        np.testing.assert_allclose([match.distance for match in matches], distances[row], atol=1e-3)
    assert len(again.search(query, 100)[0]) == 47


def test_adding_writes_one_part_and_leaves_the_rest(tmp_path):
    index = made(tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "index").iterdir()}
    index.add(points(4), names(4))
    index.save(tmp_path / "index")
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "index").iterdir()}
    assert set(after) - set(before) == {"part_00002.safetensors"}
    assert all(after[name] == before[name] for name in before)


def test_another_model_is_refused(tmp_path):
    made(tmp_path)
    with pytest.raises(VisionKitError, match="was made by CoreReID-1, the query's model is CoreReID-2"):
        GalleryIndex.load(tmp_path / "index", "CoreReID-2")
    other = GalleryIndex("CoreReID-2")
    other.add(points(3), names(3))
    with pytest.raises(VisionKitError, match="already holds an index"):
        other.save(tmp_path / "index")
    other.save(tmp_path / "other")
    (tmp_path / "other" / "part_00000.safetensors").rename(tmp_path / "index" / "part_00002.safetensors")
    with pytest.raises(VisionKitError, match="part_00002.*was made by CoreReID-2"):
        GalleryIndex.load(tmp_path / "index")


def test_damaged_files_end_in_one_line(tmp_path):
    made(tmp_path, sizes=(6,))
    file = tmp_path / "index" / "part_00000.safetensors"
    whole = file.read_bytes()
    r = np.random.RandomState(0)
    for _ in range(150):
        data = bytearray(whole[: r.randint(0, len(whole))] if r.rand() < 0.3 else whole)
        for _ in range(r.randint(1, 6)):
            if data:
                data[r.randint(0, min(len(data), 400))] = r.randint(0, 256)
        file.write_bytes(data)
        try:
            GalleryIndex.load(tmp_path / "index").search(points(1), 3)
        except VisionKitError as error:
            assert "\n" not in str(error)
    save_file(dict(features=points(2), paths=np.zeros(0, np.uint8)), file, dict(format="other"))
    with pytest.raises(VisionKitError, match="no gallery index"):
        GalleryIndex.load(tmp_path / "index")


def test_damaged_faiss_file_is_built_anew(tmp_path):
    pytest.importorskip("faiss")
    index = made(tmp_path)
    first = index.search(points(2, seed=5), 3, "hnsw")
    file = tmp_path / "index" / "hnsw.faiss"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="built anew"):
        assert index.search(points(2, seed=5), 3, "hnsw") == first


def test_wrong_input(tmp_path):
    index = GalleryIndex("m")
    with pytest.raises(VisionKitError, match="is empty"):
        index.search(points(1))
    with pytest.raises(VisionKitError, match="3 paths for features"):
        index.add(points(2), names(3))
    index.add(points(2), names(2))
    with pytest.raises(VisionKitError, match="holds 8-d features, got 4-d"):
        index.add(points(2, dim=4), names(2))
    with pytest.raises(VisionKitError, match="NaN"):
        index.add(points(2) * np.nan, names(2))
    with pytest.raises(VisionKitError, match="same model"):
        index.search(points(1, dim=4))
    with pytest.raises(VisionKitError, match="expected one of hnsw, ivf"):
        index.search(points(1), approximate="annoy")
    with pytest.raises(VisionKitError, match="visionkit index"):
        GalleryIndex.load(tmp_path)
