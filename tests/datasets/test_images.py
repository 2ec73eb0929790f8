import io
import os

import numpy as np
import pytest
import reid_trees
from PIL import Image

from visionkit.datasets import Market1501, read_image
from visionkit.datasets.images import ImageReader, images_below, to_picture
from visionkit.errors import VisionKitError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 200, 200]]], dtype=np.uint8)


def test_rgb_is_untouched(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    image = read_image(str(tmp_path / "x.png"))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), COLOURS)


def test_grey_and_palette_and_bilevel(tmp_path):
    grey = Image.fromarray(np.array([[0, 100], [200, 255]], dtype=np.uint8))
    for name, image in (("g.png", grey), ("p.png", grey.convert("P"))):
        image.save(tmp_path / name)
        pixels = np.asarray(read_image(str(tmp_path / name))).astype(int)
        assert pixels.shape == (2, 2, 3) and np.abs(pixels - np.asarray(grey)[..., None]).max() <= 0
    grey.convert("1").save(tmp_path / "b.png")
    assert set(np.unique(np.asarray(read_image(str(tmp_path / "b.png"))))) <= {0, 255}


def test_16_bit_keeps_its_range(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    pixels = np.asarray(read_image(str(tmp_path / "x.png")))
    assert np.array_equal(pixels[..., 0], [[0, 100], [200, 255]])


def test_floating_point_grey_is_scaled_or_refused(tmp_path):
    values = np.array([[0, 100 / 255], [200 / 255, 1]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(read_image(str(tmp_path / "x.tif")))[..., 0], [[0, 100], [200, 255]])
    for other in (values * 3000, values - 1, np.full_like(values, np.nan)):
        Image.fromarray(other).save(tmp_path / "x.tif")
        with pytest.raises(VisionKitError, match="x.tif.*floating-point values from .* expected 0 to 1"):
            read_image(str(tmp_path / "x.tif"))


def test_an_image_in_memory_is_read_as_its_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.repeat(COLOURS, 8, 1)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("turned.png", "deep.png"):
        path = tmp_path / name
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(to_picture(image)), np.asarray(to_picture(path)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "turned.png").read_bytes()[:-40])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(VisionKitError, match="cut.png: cannot be decoded"):
        to_picture(image)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    red = np.asarray(read_image(str(tmp_path / "x.jpg")))[4, 4].astype(int)
    assert red[0] > 220 and red[1] < 40 and red[2] < 40


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_black(tmp_path, mode):
    value = (200, 100, 50, 0) if mode == "RGBA" else (200, 0)
    image = Image.new(mode, (4, 2), value)
    image.paste(Image.new(mode, (2, 2), (*value[:-1], 255)), (2, 0))
    image.save(tmp_path / "x.png")
    pixels = np.asarray(read_image(str(tmp_path / "x.png")))
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[0, 3].tolist() == list(
        value[:3] if mode == "RGBA" else [200] * 3
    )


def test_a_colour_that_stands_for_nothing_lies_on_black(tmp_path):
    image = Image.new("RGB", (2, 1), (0, 255, 0))
    image.putpixel((1, 0), (9, 8, 7))
    image.save(tmp_path / "x.png", transparency=(0, 255, 0))
    assert np.asarray(read_image(str(tmp_path / "x.png")))[0].tolist() == [[0, 0, 0], [9, 8, 7]]


def test_of_a_gif_in_a_folder_the_first_picture_is_taken(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), name) for name in ("red", "blue"))
    red.save(tmp_path / "x.GIF", save_all=True, append_images=[blue])
    (path,) = images_below(tmp_path)
    assert np.asarray(read_image(path))[0, 0].tolist() == [255, 0, 0]


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright it is rotated by 90 degrees clockwise
    Image.fromarray(np.repeat(COLOURS, 8, 1)).save(tmp_path / "x.png", exif=exif)
    assert read_image(str(tmp_path / "x.png")).size == (2, 16)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"hello"])
def test_unreadable_files_are_named(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(VisionKitError, match=r"x.jpg: cannot be read as an image") as caught:
        read_image(str(tmp_path / "x.jpg"))
    assert "\n" not in str(caught.value)


def test_every_truncation_is_an_error_or_a_picture(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(COLOURS, 16, 0), 16, 1)).save(buffer, "JPEG")
    content = buffer.getvalue()
    for end in range(0, len(content) - 2, 23):
        (tmp_path / "x.jpg").write_bytes(content[:end])
        with pytest.raises(VisionKitError, match="x.jpg"):
            read_image(str(tmp_path / "x.jpg"))


def test_missing_file(tmp_path):
    with pytest.raises(VisionKitError, match="no such file"):
        read_image(str(tmp_path / "none.jpg"))


def test_odd_files_in_a_data_set(market):
    """A grey, a CMYK and a transparent file among the others are ordinary items."""
    names = [sample.path for sample in Market1501(market, "train").samples[:3]]
    for path, mode in zip(names, ("L", "CMYK", "RGBA")):
        Image.open(path).convert(mode).save(path, "PNG" if mode == "RGBA" else "JPEG")
    dataset = Market1501(market, "train", [np.asarray])
    assert all(dataset[row]["image"].shape == (16, 8, 3) for row in range(3))


def test_reader_reads_each_file_once(tmp_path):
    path = reid_trees.write_image(tmp_path / "x.png", 0)
    reader = ImageReader([str(path)], "memory", [8, 4])
    first = np.asarray(reader.read(0))
    path.unlink()
    assert first.shape == (8, 4, 3) and np.array_equal(first, np.asarray(reader.read(0)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail("was opened, which waits for a writer"))
    with pytest.raises(VisionKitError, match="pipe.jpg: cannot be read as an image .it is no regular file"):
        read_image(str(path))


def test_a_file_without_rights_is_told_once(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.stat", refuse)
    with pytest.raises(VisionKitError, match="^a.jpg: cannot be read as an image .Permission denied.; restore"):
        read_image("a.jpg")
