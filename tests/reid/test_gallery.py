import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import save_file

from visionkit.errors import VisionKitError
from visionkit.files import sha256_of
from visionkit.reid.gallery import GalleryIndex
from visionkit.reid.gallery_files import UNKNOWN, stamp_of, writing


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


def test_many_small_parts_are_searched_like_one():
    index, features = GalleryIndex("m"), points(40)
    for start in range(0, 40, 4):
        index.add(features[start : start + 4], names(4, start))
    order, _ = expected(features, points(3, seed=7), 9)
    matches = index.search(points(3, seed=7), 9)
    assert [[match.path for match in row] for row in matches] == [[names(40)[i] for i in row] for row in order]


@pytest.mark.parametrize("approximate", [None, "ivf"])
def test_more_parts_than_files_may_be_open(tmp_path, approximate):
    resource = pytest.importorskip("resource")
    if approximate:
        pytest.importorskip("faiss")
    folder, index = tmp_path / "index", GalleryIndex("CoreReID-1")
    index.add(points(64), names(64))
    index.save(folder)
    part = (folder / "part_00000.safetensors").read_bytes()
    for number in range(1, 130):
        (folder / f"part_{number:05d}.safetensors").write_bytes(part)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, before[1]))
    try:
        index = GalleryIndex.load(folder)
        (found,) = index.search(points(1), 3, approximate)
        index.drop(names(64)[:1])
        index.add(points(1), ["new"])
        index.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [match.path for match in found] == names(1) * 3 and len(GalleryIndex.load(folder)) == 130 * 63 + 1


def test_stamps_tell_a_replaced_file(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    index = GalleryIndex("m")
    index.add(points(1), [str(file)], [stamp_of(file)])
    index.add(points(1), ["elsewhere.jpg"])
    index.save(tmp_path / "index")
    file.write_bytes(b"other")
    stamps = GalleryIndex.load(tmp_path / "index").stamps
    assert stamps[str(file)][0] == 3 and stamps[str(file)] != stamp_of(file)
    assert stamps["elsewhere.jpg"] == UNKNOWN == stamp_of("elsewhere.jpg")


@pytest.mark.parametrize("nanoseconds", [-(10**18), 0, 15 * 10**18])
def test_a_time_that_64_bits_cannot_hold_is_a_stamp_too(tmp_path, monkeypatch, nanoseconds):
    """Damaged archives give files of the year 2446."""
    monkeypatch.setattr("os.stat", lambda path: types.SimpleNamespace(st_size=3, st_mtime_ns=nanoseconds))
    stamp = stamp_of("a.jpg")
    monkeypatch.undo()
    index = GalleryIndex("m")
    index.add(points(1), ["a.jpg"], [stamp])
    assert index.stamps["a.jpg"] == stamp


@pytest.mark.parametrize("saved", [True, False])
def test_dropped_images_are_gone_and_the_model_stays(tmp_path, saved):
    index = made(tmp_path) if saved else GalleryIndex("CoreReID-1")
    if not saved:
        index.add(points(30), names(30))
        index.add(points(12, seed=1), names(12, 30))
    index.drop({names(42)[3], *names(12, 30)})
    index.save(tmp_path / "index")
    for each in (index, GalleryIndex.load(tmp_path / "index", "CoreReID-1")):
        assert each.paths == [name for name in names(30) if name != names(30)[3]]
        assert each.search(points(30)[4:5], 1)[0][0] == (names(30)[4], 0)
    index.drop(set(names(30)))
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index", "CoreReID-1")
    assert len(again) == 0 and again.model == "CoreReID-1"
    with pytest.raises(VisionKitError, match="is empty"):
        again.search(points(1))
    again.add(points(2), names(2))
    again.save(tmp_path / "index")
    assert GalleryIndex.load(tmp_path / "index").search(points(1), 1)[0][0].path == names(1)[0]


@pytest.mark.parametrize("missing", ["stamps", "digest"])
def test_an_index_that_lacks_something_is_to_be_made_again(tmp_path, missing):
    text = np.frombuffer("\0".join(names(5)).encode(), np.uint8)
    tensors = dict(features=points(5), paths=text, stamps=np.zeros((5, 2), np.int64))
    meta = dict(format="visionkit-gallery-1", model="CoreReID-1", weights="w.pth", digest="0")
    save_file(tensors, tmp_path / "part_00000.safetensors", meta)
    assert len(GalleryIndex.load(tmp_path)) == 5
    tensors.pop(missing, None), meta.pop(missing, None)
    save_file(tensors, tmp_path / "part_00000.safetensors", meta)
    with pytest.raises(VisionKitError, match="part_00000.safetensors: cannot be read .*make the index again"):
        GalleryIndex.load(tmp_path)


def test_two_writers_lose_nothing(tmp_path):
    made(tmp_path, sizes=(6,))
    first, second = (GalleryIndex.load(tmp_path / "index") for _ in range(2))
    first.add(points(2), names(2, 6))
    second.add(points(2), names(2, 8))
    with writing(tmp_path / "index"):
        first.save(tmp_path / "index")
        with pytest.raises(VisionKitError, match="another process is writing"), writing(tmp_path / "index"):
            pass
    with writing(tmp_path / "index"), pytest.raises(VisionKitError, match="changed since it was loaded"):
        second.save(tmp_path / "index")
    assert GalleryIndex.load(tmp_path / "index").paths == names(8)


def test_a_folder_that_stays_empty_goes(tmp_path):
    with writing(tmp_path / "index"):
        assert (tmp_path / "index").is_dir()
    assert not (tmp_path / "index").exists()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "index", "/proc/x/y"):
        with pytest.raises(VisionKitError, match=f"{place}: cannot be written"), writing(place):
            pass


def test_a_refusal_is_told_where_a_held_lock_cannot_be_removed(tmp_path, monkeypatch):
    """As on Windows, where filelock removes the file when it lets go of it."""
    release = FileLock.release

    def let_go(lock, *options, **more):
        release(lock, *options, **more)
        os.unlink(lock.lock_file)

    def refuse(path, **options):
        raise PermissionError(13, "is being used by another process", str(path))

    monkeypatch.setattr(FileLock, "release", let_go)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(VisionKitError, match="no such checkpoint"), writing(tmp_path / "index"):
        raise VisionKitError("no such checkpoint")
    assert not (tmp_path / "index").exists()


def test_a_part_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    index = made(tmp_path, sizes=(6,))
    index.add(points(2), names(2, 6))
    monkeypatch.setattr("visionkit.reid.gallery_files.save_file", full_disk)
    words = "index/part_00001.safetensors: the disk is full; free some space"
    with pytest.raises(VisionKitError, match=words) as caught:
        index.save(tmp_path / "index")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    index.save(tmp_path / "index")
    assert GalleryIndex.load(tmp_path / "index").paths == names(8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are bytes, of whatever encoding")
def test_names_are_the_same_whatever_the_encoding(tmp_path):
    """What a batch system starts may run with ASCII or Latin-1, what a user starts with UTF-8."""
    name = b"caf\xc3\xa9 \xff.jpg"
    index = GalleryIndex("model", os.fsdecode(b"w\xff.pth"))
    index.add(points(1), [os.fsdecode(name)])
    index.save(tmp_path / "index")
    assert GalleryIndex.load(tmp_path / "index").paths == [os.fsdecode(name)]
    code = "import os, sys; from visionkit.reid.gallery import GalleryIndex as Index"
    code += "; print(*map(os.fsencode, Index.load(sys.argv[1]).paths))"
    ascii_alone = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    done = subprocess.run(command, env={**os.environ, **ascii_alone}, capture_output=True, text=True)
    assert done.stdout == f"{name}\n", done.stderr


def full_disk(*arguments):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


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


def test_a_faiss_file_that_faiss_cannot_read_is_built_anew(tmp_path):
    pytest.importorskip("faiss")
    index = made(tmp_path)
    first = index.search(points(2, seed=5), 3, "hnsw")
    file = tmp_path / "index" / "hnsw.faiss"
    file.write_bytes(b"of a newer faiss")
    lines = file.with_name("hnsw.faiss.sha256")
    lines.write_text("\n".join([sha256_of(file), *lines.read_text().split("\n")[1:]]))
    with pytest.warns(UserWarning, match="hnsw.faiss: cannot be read by the faiss that is installed, built anew"):
        assert index.search(points(2, seed=5), 3, "hnsw") == first


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_kept_structure_of_other_parts_is_built_anew(tmp_path, kind):
    """The number of images alone does not tell that the parts are other ones."""
    pytest.importorskip("faiss")
    index = made(tmp_path, sizes=(50,))
    index.search(points(1), 1, kind)
    index.drop({names(1)[0]})
    index.add(points(1, seed=8), ["new.jpg"])
    index.save(tmp_path / "index")
    again = GalleryIndex.load(tmp_path / "index")
    assert [match.path for match in again.search(points(2)[1:], 1, kind)[0]] == [names(2)[1]]
    assert [match.path for match in again.search(points(1, seed=8), 1, kind)[0]] == ["new.jpg"]
    (tmp_path / "index" / "part_00000.safetensors").unlink()
    other = GalleryIndex.load(tmp_path / "index")
    assert [match.path for match in other.search(points(1), 5, kind)[0]] == ["new.jpg"]


def test_a_structure_that_cannot_be_kept_still_answers(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    index = made(tmp_path)

    def refuse(index, name):
        raise RuntimeError(f"could not open {name} for writing: Permission denied")

    monkeypatch.setattr(faiss, "write_index", refuse)
    with pytest.warns(UserWarning, match="index: cannot be written, so that each search builds hnsw anew"):
        assert index.search(points(1), 1, "hnsw")[0][0].path == names(1)[0]
    assert not list((tmp_path / "index").glob("*faiss*"))


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
    with pytest.raises(VisionKitError, match="topk=0: expected at least 1"):
        index.search(points(1), 0)
    with pytest.raises(VisionKitError, match="expected one of hnsw, ivf"):
        index.search(points(1), approximate="annoy")
    with pytest.raises(VisionKitError, match="visionkit index"):
        GalleryIndex.load(tmp_path)


@pytest.mark.parametrize("approximate", [None, "hnsw", "ivf"])
def test_queries_that_no_image_can_answer(approximate):
    if approximate:
        pytest.importorskip("faiss")
    index = GalleryIndex("m")
    index.add(points(40), names(40))
    for query, message in (
        (points(1, dim=4), "query features have 4 dimensions and gallery features 8: extract both with the same model"),
        (points(1)[0], "expected a matrix"),
        (points(2) * np.float32([[1], [np.nan]]), "query features hold NaN or infinite values"),
    ):
        with pytest.raises(VisionKitError, match=message):
            index.search(query, 3, approximate)
