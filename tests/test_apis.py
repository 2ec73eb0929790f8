import io
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visionkit.apis import ReIDInferencer, files_below
from visionkit.cli import main
from visionkit.commands import index as index_command
from visionkit.commands import search as search_command
from visionkit.engine.checkpoints import save_checkpoint
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.gallery import GalleryIndex, Match
from visionkit.reid.gallery_files import writing

CONFIG = dict(
    type="visionkit.SourceReID", backbone=dict(type="visionkit.ResNet", depth=18, weights="imagenet"), num_classes=3
)


class MeanColour(nn.Module):
    """Features that a test can foresee."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def extract(self, image):
        return image.mean((2, 3)) * self.scale


@pytest.fixture
def folder(tmp_path):
    colours = dict(red=(200, 30, 30), green=(30, 200, 30), blue=(30, 30, 200), brick=(180, 60, 50))
    for name, colour in colours.items():
        place = tmp_path / "gallery" / ("sub" if name == "blue" else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 40), colour).save(place / f"{name}.png")
    Image.new("RGB", (33, 50), (210, 20, 20)).save(tmp_path / "query.png")
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = MODELS.build(dict(CONFIG, backbone=dict(CONFIG["backbone"], weights=None)))
    meta = dict(model=json.dumps(CONFIG), image_size=[64, 32])
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "best.pth")
    return tmp_path / "best.pth"


def stems(matches):
    return [match.path.rsplit("/", 1)[1].split(".")[0] for match in matches]


def test_rank_a_query_against_a_folder(folder):
    reid = ReIDInferencer(MeanColour(), batch_size=3)
    matches = reid.rank(folder / "query.png", folder / "gallery", topk=3)
    assert stems(matches)[:2] == ["red", "brick"] and len(matches) == 3
    assert [match.distance for match in matches] == sorted(match.distance for match in matches)
    several = reid.rank([folder / "query.png", Image.open(folder / "gallery" / "green.png")], folder / "gallery")
    assert several[0][:3] == matches and stems(several[1])[0] == "green"
    features = reid.features(folder / "gallery")
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


def test_the_search_is_on_the_models_device_too(folder, checkpoint, monkeypatch, capsys):
    """With a GPU that may not be used, as this machine's, which is not there."""
    assert main(["index", str(folder / "gallery"), "--weights", str(checkpoint), "--device", "cpu"]) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ReIDInferencer(MeanColour(), device="cpu").rank(folder / "query.png", folder / "gallery")
    assert main(["search", str(folder / "query.png"), str(folder / "gallery.index"), "--device", "cpu"]) == 0


def test_a_gallery_may_be_a_list(folder):
    reid = ReIDInferencer(MeanColour())
    gallery = files_below(folder / "gallery")
    assert reid.rank(folder / "query.png", gallery) == reid.rank(folder / "query.png", folder / "gallery")
    with pytest.raises(VisionKitError, match="images: expected paths or PIL images, got int"):
        reid.rank(folder / "query.png", 3)


@pytest.mark.parametrize("image_size", [64, (64,), (64, 0), (64, 32.5), "64"])
def test_a_wrong_image_size(image_size):
    with pytest.raises(VisionKitError, match=r"image_size=.*: expected \(height, width\) in pixels"):
        ReIDInferencer(MeanColour(), image_size=image_size)


@pytest.mark.parametrize("weights", [None, 3])
def test_neither_a_file_nor_a_model(weights):
    with pytest.raises(VisionKitError, match=f"weights_or_model={weights}: expected a checkpoint file or a model"):
        ReIDInferencer(weights)


def test_a_model_without_extract():
    with pytest.raises(VisionKitError, match="Flatten: expected a model with extract"):
        ReIDInferencer(nn.Flatten())


def test_a_sheet_that_cannot_be_written_is_named(folder, checkpoint, capsys):
    gallery = folder / "gallery"
    assert main(["index", str(gallery), "--weights", str(checkpoint)]) == 0
    (folder / "sheet.jpg").mkdir()
    capsys.readouterr()
    for sheet in (folder / "sheet.jpg", folder / "query.png" / "sheet.jpg"):
        assert main(["search", str(folder / "query.png"), f"{gallery}.index", "--sheet", str(sheet)]) == 2
        out, error = capsys.readouterr()
        assert error.startswith(f"error: {sheet}: ") and error.count("\n") == 1
        assert out == ""  # it was told after all answers


def test_queries_of_one_camera_have_captions_of_their_own():
    assert search_command.caption("crops/query.png") == "query"
    first, second = (search_command.caption(f"crops/IMG_20230901_{second}.jpg") for second in (174455, 174456))
    assert first != second and len(first) == len(second) == 12


def test_an_index_belongs_to_its_model(folder):
    reid = ReIDInferencer(MeanColour())
    index = reid.index(folder / "gallery")
    reid.save_index(index, folder / "index")
    assert reid.rank(folder / "query.png", folder / "index") == reid.rank(folder / "query.png", folder / "gallery")
    other = ReIDInferencer(MeanColour(2.0))
    for use in (lambda: other.load_index(folder / "index"), lambda: other.rank(folder / "query.png", index)):
        with pytest.raises(VisionKitError, match="was made by MeanColour-"):
            use()


def test_a_checkpoint_is_enough(folder, checkpoint, monkeypatch):
    reid = ReIDInferencer(checkpoint, device="cpu")  # and fetches no ImageNet weights
    assert reid.image_size == (64, 32)
    assert reid.features(folder / "query.png").shape == (1, 512)
    assert reid.model_name == ReIDInferencer(checkpoint).model_name


def test_commands_index_and_search(folder, checkpoint, capsys):
    gallery, index = folder / "gallery", folder / "gallery.index"
    (gallery / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    assert main(["index", str(gallery), "--weights", str(checkpoint)]) == 0
    assert "4 images added, 0 changed, 0 removed, 0 kept, 1 could not be read" in capsys.readouterr().out
    Image.new("RGB", (20, 40), (210, 20, 20)).save(gallery / "same.png")
    assert main(["index", str(gallery)]) == 0
    assert "1 images added, 0 changed, 0 removed, 4 kept" in capsys.readouterr().out
    sheet = folder / "sheet.png"
    assert main(["search", str(gallery / "same.png"), str(index), "--topk", "2", "--sheet", str(sheet)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0.000") and first.endswith("same.png") and second != first
    assert Image.open(sheet).width > 200


def test_an_index_follows_its_folder(folder, checkpoint, capsys):
    gallery, elsewhere, index = folder / "gallery", folder / "other", folder / "all.index"
    elsewhere.mkdir()
    Image.new("RGB", (20, 40), (9, 9, 9)).save(elsewhere / "black.png")
    for each in (gallery, elsewhere):
        assert main(["index", str(each), "--weights", str(checkpoint), "--index", str(index)]) == 0
    Image.new("RGB", (20, 40), (250, 240, 30)).save(gallery / "green.png")
    Image.new("RGB", (20, 40), (90, 90, 90)).save(gallery / "grey.png")
    (gallery / "brick.png").unlink()
    capsys.readouterr()
    assert main(["index", str(gallery), "--index", str(index)]) == 0
    assert "1 images added, 1 changed, 1 removed, 3 kept, 0 could not be read" in capsys.readouterr().out
    left = GalleryIndex.load(index)
    assert sorted(Path(path).stem for path in left.paths) == ["black", "blue", "green", "grey", "red"]
    assert main(["search", str(gallery / "green.png"), str(index), "--topk", "1"]) == 0
    assert capsys.readouterr().out.startswith("0.000")
    assert main(["index", str(gallery), "--index", str(index)]) == 0
    assert "0 images added, 0 changed, 0 removed, 5 kept" in capsys.readouterr().out
    (gallery / "red.png").unlink()
    assert main(["search", str(gallery / "grey.png"), str(index), "--sheet", str(folder / "sheet.jpg")]) == 0


def test_an_index_saved_from_python_is_kept(folder, checkpoint, capsys, monkeypatch):
    reid = ReIDInferencer(checkpoint, device="cpu")
    monkeypatch.chdir(folder)
    reid.save_index(reid.index("gallery"), folder / "gallery.index")
    assert main(["index", str(folder / "gallery")]) == 0
    assert "0 images added, 0 changed, 0 removed, 4 kept" in capsys.readouterr().out


def test_an_index_that_lost_all_its_images_goes_on(folder, checkpoint):
    gallery, index = folder / "gallery", folder / "gallery.index"
    assert main(["index", str(gallery), "--weights", str(checkpoint)]) == 0
    held = GalleryIndex.load(index)
    held.drop(held.paths)  # as a kill leaves it when every image was replaced
    assert main(["index", str(gallery)]) == 0
    assert len(GalleryIndex.load(index)) == 4


def test_images_of_a_folder_that_is_gone_are_told(folder, checkpoint, capsys):
    gallery, index = folder / "gallery", folder / "gallery.index"
    assert main(["index", str(gallery), "--weights", str(checkpoint)]) == 0
    gallery.rename(folder / "moved")
    capsys.readouterr()
    assert main(["index", str(folder / "moved"), "--index", str(index)]) == 0
    assert "4 of the images kept no longer exist" in capsys.readouterr().out


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_keeps_what_was_extracted(folder, checkpoint, capsys, monkeypatch, number, status):
    batches = ReIDInferencer.batches

    def stopped(self, images, skip=False):
        for place, batch in enumerate(batches(self, images, skip)):
            if place == 1:
                signal.raise_signal(number)
            yield batch

    command = ["index", str(folder / "gallery"), "--batch-size", "1"]
    monkeypatch.setattr(ReIDInferencer, "batches", stopped)
    assert main([*command, "--weights", str(checkpoint)]) == status
    assert "the same command adds the rest" in capsys.readouterr().err
    assert len(GalleryIndex.load(folder / "gallery.index")) == 2
    monkeypatch.setattr(ReIDInferencer, "batches", batches)
    assert main(command) == 0
    assert "2 images added, 0 changed, 0 removed, 2 kept" in capsys.readouterr().out


@pytest.fixture
def listens_to_ctrl_c():
    """As in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_stops_at_once(folder, checkpoint, capsys, monkeypatch, number, status):
    def stopped(self, images, skip=False):
        signal.raise_signal(number)
        signal.raise_signal(number)
        pytest.fail("went on")

    monkeypatch.setattr(ReIDInferencer, "batches", stopped)
    assert main(["index", str(folder / "gallery"), "--weights", str(checkpoint)]) == status
    assert "once more to stop at once" in capsys.readouterr().err and not (folder / "gallery.index").exists()


def test_an_index_outside_of_the_main_thread(folder, checkpoint):
    """Signals cannot be listened to there."""
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(main, ["index", str(folder / "gallery"), "--weights", str(checkpoint)])
    assert status.result() == 0 and len(GalleryIndex.load(folder / "gallery.index")) == 4


def test_a_crash_loses_one_part_at_most(folder, checkpoint, capsys, monkeypatch):
    batches = ReIDInferencer.batches

    def crashing(self, images, skip=False):
        for place, batch in enumerate(batches(self, images, skip)):
            if place == 3:
                raise VisionKitError("the machine caught fire")
            yield batch

    monkeypatch.setattr(ReIDInferencer, "batches", crashing)
    monkeypatch.setattr(index_command, "IMAGES_A_PART", 2)
    monkeypatch.setattr("visionkit.progress.SECONDS_A_LINE", 0)
    assert main(["index", str(folder / "gallery"), "--weights", str(checkpoint), "--batch-size", "1"]) == 2
    assert len(GalleryIndex.load(folder / "gallery.index")) == 2
    assert capsys.readouterr().out.splitlines() == [f"images: {number} of 4" for number in (1, 2, 3)]


def test_parts_grow_by_time_too(monkeypatch):
    monkeypatch.setattr(index_command, "SECONDS_A_PART", 0)
    batches = [(["a"], np.zeros((1, 2))), (["b", "c"], np.ones((2, 2)))]
    assert [paths for paths, _ in index_command.parts(batches, [], advance=lambda steps: None)] == [["a"], ["b", "c"]]


def test_what_cannot_be_written_is_told_before_the_work(folder, checkpoint, capsys, monkeypatch):
    gallery = str(folder / "gallery")
    index = folder / "gallery.index"
    assert main(["index", gallery, "--weights", str(folder / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err and not index.exists()
    assert main(["index", gallery, "--weights", str(checkpoint)]) == 0
    (folder / "file").write_text("")
    monkeypatch.setattr(ReIDInferencer, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    capsys.readouterr()
    for place in (folder / "file", "/proc/x/y"):
        assert main(["index", gallery, "--weights", str(checkpoint), "--index", str(place)]) == 2
        error = capsys.readouterr().err
        assert f"{place}: cannot be written" in error and error.count("\n") == 1
    with writing(index):
        assert main(["index", gallery]) == 2
    assert "another process is writing to it" in capsys.readouterr().err
    assert main(["search", str(folder / "query.png"), str(index), "--sheet", "s.gif"]) == 2
    assert "s.gif: name a picture" in capsys.readouterr().err


def test_a_linked_gallery_keeps_its_name(folder, checkpoint):
    (folder / "link").symlink_to(folder / "gallery")
    assert main(["index", f"{folder / 'link'}/", "--weights", str(checkpoint)]) == 0
    assert all(path.startswith(str(folder / "link")) for path in GalleryIndex.load(folder / "link.index").paths)
    assert not (folder / "gallery.index").exists()


def test_linked_folders_are_followed_once(folder):
    gallery, outside = folder / "gallery", folder / "outside"
    own = files_below(gallery)
    (outside / "deep").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(outside / "deep" / "far.png")
    (gallery / "linked").symlink_to(outside)
    (outside / "deep" / "back").symlink_to(gallery)
    (outside / "deep" / "round").symlink_to(outside)
    (gallery / "a").symlink_to(gallery / "sub")  # a folder's own path comes before a link to it
    assert files_below(gallery) == sorted([*own, str(gallery / "linked" / "deep" / "far.png")])


def test_a_folder_that_cannot_be_read_is_told(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VisionKitError, match="sub: cannot be read"):
        files_below(folder / "gallery")


def test_a_pil_image_has_the_features_of_its_file(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.zeros((40, 20, 3), np.uint8)
    turned[:10] = 255, 0, 0
    Image.fromarray(turned).save(folder / "turned.png", exif=exif)
    deep = np.arange(800, dtype=np.uint16).reshape(40, 20) * 80
    Image.fromarray(deep).save(folder / "deep.png")

    class Corner(MeanColour):
        def extract(self, image):
            return image[:, :, :4, :4].mean((2, 3)) * self.scale

    reid = ReIDInferencer(Corner())
    for name in ("turned.png", "deep.png"):
        of_file = reid.features(folder / name)
        np.testing.assert_array_equal(reid.features(Image.open(folder / name)), of_file)


def test_images_of_another_kind_are_refused(folder):
    reid = ReIDInferencer(MeanColour())
    for images in (np.zeros((8, 8, 3), np.uint8), [folder / "query.png", np.zeros((8, 8, 3))], 3):
        with pytest.raises(VisionKitError, match="images: expected paths or PIL images, got (ndarray|int)"):
            reid.features(images)
    (folder / "cut.png").write_bytes((folder / "query.png").read_bytes()[:60])
    with pytest.raises(VisionKitError, match="cut.png: cannot be decoded"):
        reid.features(Image.open(folder / "cut.png"))


def test_a_long_list_is_cut_on_the_sheet_alone(folder, capsys):
    answers = [[Match(str(folder / "query.png"), 0.1)] * 600]
    search_command.draw([str(folder / "query.png")], answers, str(folder / "sheet.jpg"))
    assert "1 of 1 queries, 50 of 600 images each" in capsys.readouterr().err
    assert 50 * 64 < Image.open(folder / "sheet.jpg").width < 50 * 128


def test_any_path_can_be_printed(folder, checkpoint, monkeypatch):
    for name in (b"\xff.png", "ü.png".encode()):
        os.link(folder / "gallery" / "red.png", os.path.join(os.fsencode(folder / "gallery"), name))
    assert main(["index", str(folder / "gallery"), "--weights", str(checkpoint)]) == 0
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["search", str(folder / "query.png"), str(folder / "gallery.index")]) == 0
    out.flush()
    assert b"\\xfc.png" in out.buffer.getvalue() and b"\\udcff.png" in out.buffer.getvalue()


@pytest.mark.parametrize(
    "command, message", [("search", "unfinished is not kept"), ("index", "goes on with the images")]
)
def test_an_interruption_says_what_is_kept(folder, checkpoint, capsys, monkeypatch, command, message):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    assert main(["index", str(folder / "gallery"), "--weights", str(checkpoint)]) == 0
    monkeypatch.setattr(ReIDInferencer, "__init__", interrupt)
    arguments = [str(folder / "query.png"), str(folder / "gallery.index")]
    assert main([command, *(arguments if command == "search" else [str(folder / "gallery")])]) == 130
    assert message in capsys.readouterr().err


def test_wrong_input_ends_in_one_line(folder, checkpoint, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    reid = ReIDInferencer(MeanColour())
    with pytest.raises(VisionKitError, match="holds no images"):
        reid.rank(folder / "query.png", empty)
    with pytest.raises(VisionKitError, match="missing.png"):
        reid.features(folder / "missing.png")
    (empty / "zero.jpg").write_bytes(b"")
    with pytest.raises(VisionKitError, match="zero.jpg"):
        reid.features(empty)
    index = ["index", str(folder / "gallery")]
    with_weights = [*index, "--weights", str(checkpoint)]
    wrong = (["--batch-size", "0"], ["--workers", "-1"], ["--device", "gpu"], ["--device", "cuda:99"])
    for arguments in (
        index,
        ["index", "nowhere"],
        ["search", "q.png", str(empty)],
        *([*with_weights, *options] for options in wrong),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "meta, message",
    [
        (None, "does not say which model"),
        (dict(model="{not json"), "does not say which model"),
        (dict(model=json.dumps(dict(CONFIG, type="os.system", command="true"))), "refused.*os.system"),
        (dict(model=json.dumps(dict(CONFIG, backbone=dict(type="os.getcwd")))), "refused.*os.getcwd"),
        (dict(model=json.dumps(dict(CONFIG, num_classes=4))), "do not fit"),
        (dict(model=json.dumps(dict(CONFIG, num_classes="four"))), "cannot be built"),
        (dict(model=json.dumps(CONFIG), image_size=[0]), "image size"),
    ],
)
def test_checkpoints_that_do_not_describe_their_model(checkpoint, tmp_path, meta, message):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    save_checkpoint(dict(meta=meta, state_dict=state), tmp_path / "odd.pth")
    with pytest.raises(VisionKitError, match=message):
        ReIDInferencer(tmp_path / "odd.pth")


def test_a_checkpoint_without_weights_is_named(tmp_path):
    save_checkpoint(dict(meta=dict(model=json.dumps(CONFIG)), state_dict=dict(a=1)), tmp_path / "odd.pth")
    with pytest.raises(VisionKitError, match="odd.pth: holds a int under 'a'"):
        ReIDInferencer(tmp_path / "odd.pth")
