"""Readers on whole and on damaged captures."""

import dataclasses
import functools
import json
import os
import shutil
import struct

import cv2
import numpy as np
import pytest
import torch
from nvs.captures.trees import arc, write_colmap, write_transforms
from PIL import Image, ImageOps

from visionkit.errors import VisionKitError
from visionkit.nvs.captures import colmap, focal_from_exif, is_capture, photos_in, read_capture, read_photo


@pytest.mark.parametrize("write", [write_colmap, lambda folder: write_colmap(folder, text=True), write_transforms])
def test_poses_and_lenses_come_back(tmp_path, write):
    folder = write(tmp_path / "a")
    scene = read_capture(folder)
    assert is_capture(folder) and scene.skipped == () and len(scene) == 6
    for row, camera in enumerate(arc()):
        assert scene.paths[row].name == f"{row:03d}.png"
        found = scene.camera(row)
        assert np.allclose(found.c2w, camera.c2w, atol=1e-6) and found.focal == camera.focal
        assert found.size == camera.size


def test_points_are_where_they_were_and_seen_by_whom_they_were(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a"))
    xyz = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 3))
    assert np.allclose(scene.points, xyz, atol=1e-6)
    assert all(np.array_equal(rows, np.arange(60)) for rows in scene.visible)


def test_a_model_is_read_where_no_links_can_be_made(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(22, "A required privilege is not held by the client")  # Windows, of most users

    monkeypatch.setattr("os.symlink", refuse)
    scene = read_capture(write_colmap(tmp_path / "a"))
    assert len(scene) == 6 and len(scene.points) == 60 and scene.skipped == ()


def test_images_and_poses_are_joined_by_name(tmp_path):
    folder = write_colmap(tmp_path / "a")
    (folder / "images" / "001.png").rename(folder / "images" / "aaa.png")
    scene = read_capture(folder)
    assert scene.names == ("000.png", "002.png", "003.png", "004.png", "005.png")
    assert dict(scene.skipped) == {"aaa.png": "has no pose", "001.png": "is not in the folder"}
    assert np.allclose(scene.c2w[1], arc()[2].c2w, atol=1e-6)


def test_no_image_with_a_pose(tmp_path):
    folder = write_colmap(tmp_path / "a")
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        path.rename(path.with_name(f"IMG_{number}.png"))
    with pytest.raises(VisionKitError, match="no photo in images/ has a pose"):
        read_capture(folder)


def test_photo_of_another_shape_than_its_camera_is_left_out(tmp_path):
    folder = write_colmap(tmp_path / "a")
    Image.new("RGB", (40, 30)).save(folder / "images" / "002.png")
    (folder / "images" / "003.png").write_bytes(b"no image")
    scene = read_capture(folder)
    assert dict(scene.skipped) == {
        "002.png": "is 40x30, but its camera 30x40",
        "003.png": "cannot be read as an image",
    }


@pytest.mark.parametrize("keep", [0, 5, 500, -1])
def test_truncated_points_are_done_without(tmp_path, keep):
    folder = write_colmap(tmp_path / "a")
    file = folder / "sparse" / "0" / "points3D.bin"
    file.write_bytes(file.read_bytes()[:keep])
    scene = read_capture(folder)
    assert len(scene) == 6 and scene.points.shape == (0, 3) and scene.normalised().near > 0
    assert scene.skipped == (("points3D.bin", "cannot be read; the capture is used without its points"),)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin"])
def test_truncated_poses_are_refused(tmp_path, name):
    folder = write_colmap(tmp_path / "a")
    file = folder / "sparse" / "0" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(VisionKitError, match=f"{name}: is truncated"):
        read_capture(folder)


def test_empty_sparse_and_folders_that_are_no_captures(tmp_path):
    folder = write_colmap(tmp_path / "a")
    shutil.rmtree(folder / "sparse" / "0")
    with pytest.raises(VisionKitError, match="sparse: is empty"):
        read_capture(folder)
    with pytest.raises(VisionKitError, match="no sparse/0"):
        read_capture(folder / "images")
    with pytest.raises(VisionKitError, match="no such capture"):
        read_capture(tmp_path / "b")
    assert not is_capture(folder / "images")


def test_transforms_with_a_lens_per_frame_and_an_angle(tmp_path):
    folder = write_transforms(tmp_path / "a")
    content = json.loads((folder / "transforms.json").read_text())
    del content["fl_x"], content["fl_y"], content["w"], content["h"]
    content["camera_angle_x"] = 2 * np.arctan(30 / 72)
    content["frames"][1].update(fl_x=50, fl_y=51, cx=15, cy=20)
    content["frames"][2]["file_path"] = "images/002"
    (folder / "transforms.json").write_text(json.dumps(content))
    scene = read_capture(folder)
    assert scene.camera(0).focal == pytest.approx((36, 36)) and scene.camera(1).focal == (50, 51)
    assert len(scene) == 6


@pytest.mark.parametrize("own, pixels", [("camera_angle_x", 30), ("camera_angle_y", 40)])
def test_a_lens_of_a_frame_replaces_the_one_given_once_whatever_its_form(tmp_path, own, pixels):
    folder = write_transforms(tmp_path / "a")  # with fl_x and fl_y once
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][1][own] = 2 * np.arctan(pixels / 120)
    (folder / "transforms.json").write_text(json.dumps(content))
    scene = read_capture(folder)
    assert scene.camera(0).focal == pytest.approx((36, 36)) and scene.camera(1).focal == pytest.approx((60, 60))


def test_wrong_frames_of_transforms_are_named(tmp_path):
    folder = write_transforms(tmp_path / "a")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][0]["transform_matrix"] = [[1, 2], [3, 4]]
    content["frames"][1]["file_path"] = "images/gone.png"
    content["frames"][2]["transform_matrix"][0] = [0, 0, 0, 0]
    content["frames"][3]["fl_x"] = "wide"
    content["frames"][4]["camera_model"] = "OPENCV_FISHEYE"
    (folder / "transforms.json").write_text(json.dumps(content))
    scene = read_capture(folder)
    assert scene.names == ("images/005.png",) and len(scene.skipped) == 5
    reasons = dict(scene.skipped)
    assert "4 rows" in reasons["images/000.png"] and "missing" in reasons["images/gone.png"]
    assert "rotation" in reasons["images/002.png"] and "FISHEYE" in reasons["images/004.png"]


@pytest.mark.parametrize("focal", [0.8, 5000.0])
def test_a_lens_that_nobody_has_leaves_its_photo_out(tmp_path, focal):
    folder = write_transforms(tmp_path / "a")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][1]["fl_x"] = focal
    (folder / "transforms.json").write_text(json.dumps(content))
    (_, reason), *others = read_capture(folder).skipped
    assert "degrees by its focal length; expected 5 to 150" in reason and not others
    cameras = [dataclasses.replace(camera, focal=(focal, focal)) for camera in arc()]
    with pytest.raises(VisionKitError, match="expected 5 to 150"):
        read_capture(write_colmap(tmp_path / "b", cameras))


@pytest.mark.parametrize("text, words", [("{", "valid JSON"), ("[]", "object"), ("{}", "frames")])
def test_files_that_are_no_transforms(tmp_path, text, words):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(VisionKitError, match=words):
        read_capture(tmp_path)


def photo(path, size=(40, 30), focal=None, orientation=None, mode="RGB"):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    if focal is not None:
        exif[0x8769] = {0xA405: focal}
    Image.new(mode, size, 7000 if mode == "I;16" else None).save(path, exif=exif)
    return path


def test_focal_length_of_a_photo(tmp_path):
    assert read_photo(photo(tmp_path / "a.jpg", focal=27)).focal == pytest.approx(27 / 36 * 40)
    assert read_photo(photo(tmp_path / "a.jpg", focal=27)).note == ""
    assert read_photo(photo(tmp_path / "a.jpg", focal=27), focal_ratio=2).focal == 80
    none = read_photo(photo(tmp_path / "a.jpg"))
    assert none.focal == pytest.approx(0.78 * 40) and "no focal length" in none.note
    for absurd in (0, 3, 5000):
        wrong = read_photo(photo(tmp_path / "a.jpg", focal=absurd))
        assert wrong.focal == none.focal and f"{absurd} mm" in wrong.note


def test_absurd_lenses_of_phones_are_not_believed(tmp_path):
    absurd = read_photo(photo(tmp_path / "a.jpg", (480, 640), focal=177))  # an iPhone's at that size
    assert absurd.focal == pytest.approx(0.78 * 640) and "177 mm" in absurd.note
    path, exif = tmp_path / "b.jpg", Image.Exif()
    for own, zoom, believed in ((4.25, 0, False), (4.25, 6, True), (18.6, 1, True)):
        exif[0x8769] = {0xA405: 120, 0x920A: own, 0xA404: zoom}
        Image.new("RGB", (1200, 900)).save(path, exif=exif)
        assert (read_photo(path).note == "") == believed


@pytest.mark.parametrize("mode, name", [("RGB", "a.jpg"), ("I;16", "a.png"), ("RGBA", "a.png")])
def test_an_image_in_memory_is_read_as_its_file(tmp_path, mode, name):
    path = photo(tmp_path / name, focal=36, orientation=6, mode=mode)
    of_file = read_photo(path)
    with Image.open(path) as image:
        in_memory = read_photo(image)
    assert np.array_equal(of_file.image, in_memory.image) and of_file[1:] == in_memory[1:]
    with pytest.raises(VisionKitError, match="PIL image: 1x1 pixels"):
        read_photo(Image.new("RGB", (1, 1)))


def test_rotated_deep_transparent_and_heic_photos(tmp_path):
    turned = read_photo(photo(tmp_path / "a.jpg", focal=36, orientation=6))
    assert turned.image.shape == (40, 30, 3) and turned.focal == 40
    deep = read_photo(photo(tmp_path / "b.png", mode="I;16"))
    assert deep.image.dtype == np.uint8 and (deep.image == round(7000 * 255 / 65535)).all()
    assert read_photo(photo(tmp_path / "c.png", mode="RGBA")).image.shape == (30, 40, 3)
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert read_photo(photo(tmp_path / "d.heic", (64, 48), focal=36)).focal == 64


def test_photos_that_show_nothing(tmp_path):
    with pytest.raises(VisionKitError, match="1x1 pixels"):
        read_photo(photo(tmp_path / "a.png", (1, 1)))
    with pytest.raises(VisionKitError, match="no photos"):
        photos_in((tmp_path / "empty").mkdir() or tmp_path / "empty")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff")
    assert focal_from_exif(tmp_path / "b.jpg")[0] is None
    assert [path.name for path in photos_in(tmp_path)] == ["a.png", "b.jpg"]


def test_a_subset_keeps_rows_together(tmp_path):
    scene = read_capture(write_colmap(tmp_path / "a"))
    part = scene.subset([4, 1])
    assert part.names == ("004.png", "001.png") and np.array_equal(part.c2w, scene.c2w[[4, 1]])
    assert dataclasses.replace(part, names=()).skipped == ()


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Captures to copy, each drawn once."""
    return functools.cache(lambda write: write(tmp_path_factory.mktemp("trees") / "a"))


def marked(folder, orientation, size):
    """Gives the first photograph of a capture an EXIF orientation and a red upper left corner as it is stored."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[: size[0] // 2, : size[1] // 2, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / "images" / "000.png", exif=exif)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", [write_colmap, write_transforms])
def test_a_turned_photo_is_upright_and_its_camera_with_it(tmp_path, trees, kind, orientation):
    folder, (height, width) = shutil.copytree(trees(kind), tmp_path / "a"), arc()[0].size
    stored = read_capture(folder).camera(0)
    marked(folder, orientation, (height, width))
    scene = read_capture(folder)
    camera, image = scene.camera(0), scene.image(0)
    upright = orientation in (3, 6, 8)
    assert len(scene) == 6 and image.shape[:2] == camera.size
    assert camera.size == ((width, height) if orientation in (6, 8) else (height, width))
    with Image.open(scene.paths[0]) as file:
        seen = np.asarray(ImageOps.exif_transpose(file) if upright else file)
    assert np.abs(image.astype(int) - seen).max() < 90  # at the mark's edges, if at all
    # whatever way it stands, the mark lies in the same direction
    rays = camera.rays()[1].view(*camera.size, 3)[torch.from_numpy(image[..., 0] > 128)].mean(dim=0)
    expected = stored.rays()[1].view(height, width, 3)[: height // 2, : width // 2].mean(dim=(0, 1))
    assert torch.allclose(rays, expected, atol=1e-2)


def test_a_photo_of_too_many_pixels_is_not_called_broken(tmp_path, trees, monkeypatch):
    folder = shutil.copytree(trees(write_colmap), tmp_path / "a")
    Image.new("RGB", (300, 400)).save(folder / "images" / "000.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(VisionKitError, match="000.png: has more pixels than .*; scale it down"):
        read_photo(folder / "images" / "000.png")
    assert [reason.split(";")[1] for _, reason in read_capture(folder).skipped] == [" scale it down"]


def test_a_lens_turns_with_its_photo():
    from visionkit.nvs.captures.scene import turned

    rng = np.random.default_rng(0)
    K, size = np.array([[50.0, 0, 21], [0, 60, 14], [0, 0, 1]]), (30, 40)
    distortion = np.array([0.1, -0.05, 0.02, -0.03, 0.01, 0, 0, 0])
    c2w = np.concatenate([np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=(3, 1))], axis=1)
    points = c2w[:, 3] + rng.uniform(-0.3, 0.3, (9, 3)) + c2w[:, 2]

    def project(c2w, K, size, distortion):
        local = (points - c2w[:, 3]) @ c2w[:, :3]
        return cv2.projectPoints(local, np.zeros(3), np.zeros(3), K, distortion)[0][:, 0]

    before = project(c2w, K, size, distortion)
    for turns, expected in ((1, [30 - before[:, 1], before[:, 0]]), (2, [40 - before[:, 0], 30 - before[:, 1]])):
        after = project(*turned(c2w, K, size, distortion, turns))
        assert np.allclose(after, np.stack(expected, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(w=0), "w and h"),
        (dict(h=-40), "w and h"),
        (dict(w="wide"), "w is 'wide'"),
        (dict(w=300), "is 30x40, but its w and h say 300x40"),
        (dict(cx=float("nan")), "cx is nan"),
        (dict(cy=41), "cy is 41"),
        (dict(cx=-1), "cx is -1"),
        (dict(k1=float("inf")), "k1 is inf"),
        (dict(k5=None), "k5 is None"),
        (dict(p2="0"), "p2 is '0'"),
        (dict(fl_x=0), "fl_x is 0"),
        (dict(fl_y=float("inf")), "fl_y is inf"),
        (dict(camera_angle_x=0), "camera_angle_x is 0"),
        (dict(transform_matrix="here"), "transform_matrix: expected"),
        (dict(transform_matrix=(1e300 * np.eye(4)).tolist()), "transform_matrix: expected"),
    ],
)
def test_odd_numbers_of_transforms_are_named(tmp_path, trees, change, words):
    folder = shutil.copytree(trees(write_transforms), tmp_path / "a")
    content = json.loads((folder / "transforms.json").read_text())
    content["frames"][2].update(change)
    (folder / "transforms.json").write_text(json.dumps(content))
    scene = read_capture(folder)
    assert len(scene) == 5
    ((name, reason),) = scene.skipped
    assert name == "images/002.png" and words in reason
    for frame in content["frames"]:
        frame.update(change)
    (folder / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(VisionKitError, match="transforms.json: none of its 6 frames can be used .images/000.png"):
        read_capture(folder)


def test_lens_terms_that_are_not_supported_are_told(tmp_path):
    scene = read_capture(write_transforms(tmp_path / "a", k4=0.01, k5=0, k6=-0.1))
    assert len(scene) == 6 and not scene.distortion.any()
    assert scene.skipped == (("k4, k6", "of the lens: not supported; the capture is used without"),)


def test_photos_that_are_cut_off_are_left_out(tmp_path):
    folder = write_colmap(tmp_path / "a")
    whole = (folder / "images" / "002.png").read_bytes()
    (folder / "images" / "002.png").write_bytes(whole[: len(whole) // 2])
    scene = read_capture(folder)
    assert len(scene) == 5 and scene.skipped == (("002.png", "is damaged"),)
    for path in (folder / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(VisionKitError, match="none of its 6 photos can be decoded"):
        read_capture(folder)


def test_transforms_written_on_windows_are_read(tmp_path):
    folder = write_transforms(tmp_path / "a")
    text = (folder / "transforms.json").read_text().replace("images/", "images\\\\")
    (folder / "transforms.json").write_text(text, encoding="utf-8-sig")
    assert len(read_capture(folder)) == 6


def test_lenses_that_are_no_pinholes_are_refused(tmp_path):
    with pytest.raises(VisionKitError, match="EQUIRECTANGULAR"):
        read_capture(write_transforms(tmp_path / "a", camera_model="EQUIRECTANGULAR"))


PLY = """ply
format ascii 1.0
element vertex 2
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
0 0 1 9 9 9
"""


@pytest.mark.parametrize("text", ["", "junk", PLY.replace("ascii", "binary_little_endian"), PLY + "a b c 9 9 9\n"])
def test_a_damaged_ply_is_done_without(tmp_path, text):
    folder = write_transforms(tmp_path / "a", ply_file_path="points.ply")
    (folder / "points.ply").write_text(text)
    scene = read_capture(folder)
    assert len(scene) == 6 and scene.points.shape == (0, 3)
    assert scene.skipped == (("points.ply", "cannot be read; the capture is used without its points"),)


def test_points_of_nerfstudio_come_back(tmp_path):
    folder = write_transforms(tmp_path / "a", ply_file_path="points.ply")
    text = PLY.replace("uchar", "uint8").replace("vertex 2", "vertex 1")
    (folder / "points.ply").write_text(text)
    scene = read_capture(folder)
    assert scene.points.tolist() == [[0, 0, 1]] and scene.skipped == ()


def test_points_that_are_missing_are_told(tmp_path):
    scene = read_capture(write_transforms(tmp_path / "a", ply_file_path="points.ply"))
    assert scene.skipped == (("points.ply", "is missing; the capture is used without its points"),)


def test_points_of_a_ply_come_back_without_those_that_lie_nowhere(tmp_path):
    folder = write_transforms(tmp_path / "a", ply_file_path="points.ply")
    header = PLY.replace("ascii", "binary_little_endian").rsplit("0 0 1", 1)[0].encode()
    rows = (struct.pack("<3f3B", *xyz, 9, 9, 9) for xyz in ((0, 0, 1), (float("nan"), 0, 1)))
    (folder / "points.ply").write_bytes(header + b"".join(rows))
    scene = read_capture(folder)
    assert scene.points.tolist() == [[0, 0, 1]] and scene.skipped == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_a_pipe_among_the_photos_is_no_photo(tmp_path):
    """To open it would wait for a writer."""
    (tmp_path / "a.jpg").touch()
    os.mkfifo(tmp_path / "b.jpg")
    assert list(colmap._files_below(tmp_path)) == ["a.jpg"]
