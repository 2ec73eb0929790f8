import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visionkit.apis import ReIDInferencer
from visionkit.cli import main
from visionkit.engine.checkpoints import save_checkpoint
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

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
    assert "4 images added, 0 were there, 1 could not be read" in capsys.readouterr().out
    Image.new("RGB", (20, 40), (210, 20, 20)).save(gallery / "same.png")
    assert main(["index", str(gallery)]) == 0
    assert "1 images added, 4 were there" in capsys.readouterr().out
    sheet = folder / "sheet.png"
    assert main(["search", str(gallery / "same.png"), str(index), "--topk", "2", "--sheet", str(sheet)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0.000") and first.endswith("same.png") and second != first
    assert Image.open(sheet).width > 200


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
