"""The stage from a tiny Market-1501 tree to a folder of styled images."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from reid_trees import write_duke, write_image, write_market

from visionkit.datasets import FolderReID, Market1501
from visionkit.engine.checkpoints import load_checkpoint
from visionkit.engine.pipeline import Context
from visionkit.errors import VisionKitError
from visionkit.reid.camstyle import CamStyleStage
from visionkit.reid.camstyle.model import CycleGAN

pytestmark = pytest.mark.filterwarnings("ignore:.*published with")
TINY = dict(
    model=dict(generator=dict(ngf=2, num_blocks=1), discriminator=dict(ndf=2, num_layers=1), pool_size=1),
    image_size=(16, 8),
    load_size=(18, 9),
    epochs=1,
    decay_epochs=1,
    iters_per_epoch=2,
)


def context_in(folder, root, **cfg):
    source = dict(type="visionkit.Market1501", root=str(root))
    folder.mkdir(parents=True, exist_ok=True)
    return Context(Config(dict(source=source, **cfg)), folder, 1, "none", {})


def weights_and_images(folder):
    weights = {
        f"{path.parent.name}.{key}": value
        for path in sorted(folder.glob("*/generators.pth"))
        for key, value in load_checkpoint(path)["state_dict"].items()
    }
    return weights, {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return write_market(tmp_path_factory.mktemp("market"), cams=3)


@pytest.fixture(scope="module")
def finished(market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "camstyle"
    CamStyleStage("camstyle", **TINY).run(context_in(folder, market))
    return folder


def test_every_image_gets_every_other_style(market, finished):
    originals = sorted((market / "bounding_box_train").iterdir())
    expected = set()
    for path in originals:
        own = int(path.name[6])
        expected |= {f"{path.stem}_fake_{own}to{other}.jpg" for other in {1, 2, 3} - {own}}
    assert {path.name for path in (finished / "images").iterdir()} == expected
    assert all(Image.open(path).size == (8, 16) for path in (finished / "images").iterdir())
    counts = json.loads((finished / "images.json").read_text())
    assert counts["total"] == 24 and counts["1to2"] == 6 and counts["3to2"] == 3
    assert sorted(path.name for path in finished.glob("c?_c?")) == ["c1_c2", "c1_c3", "c2_c3"]
    assert not list(finished.rglob("epoch_*")) and not list(finished.rglob("*.tmp"))


def test_the_source_data_set_reads_them(market, finished):
    styled = Market1501(market, "train", styled=dict(root=str(finished / "images"), camera="style"))
    assert len(styled.samples) == 12 + 24 and styled.num_pids == 3


def test_a_folder_for_each_identity_and_an_image_that_cannot_be_read(tmp_path):
    """Their files have the same names, and the broken one is the first that the picture would show."""
    for person in range(4):
        for camera in (1, 2):
            write_image(tmp_path / "crops" / f"p{person}" / f"c{camera}_0.jpg", person)
    Path(FolderReID(tmp_path / "crops", "train", train_share=0.75).samples[0].path).write_bytes(b"")
    source = dict(type="visionkit.FolderReID", root=str(tmp_path / "crops"), train_share=0.75)
    context = Context(Config(dict(source=source)), tmp_path / "camstyle", 1, "none", {})
    CamStyleStage("camstyle", **dict(TINY, decay_epochs=0)).run(context)
    styled = FolderReID(tmp_path / "crops", "train", train_share=0.75, styled=dict(root=context.work_dir / "images"))
    real, made = styled.samples[:6], styled.samples[6:]
    assert len(made) == 5 and (context.work_dir / "sheet.jpg").is_file()
    for sample in made:
        name = Path(sample.path).name
        assert [each.pid for each in real if Path(each.path).parent.name == name.split("__")[0]] == [sample.pid] * 2


def test_the_sheet_and_the_logs(finished):
    width, height = Image.open(finished / "sheet.jpg").size
    assert width == 4 * (64 + 4) + 4 and height == 8 * (128 + 4) + 16
    assert list((finished / "tensorboard").glob("events*"))
    rows = [json.loads(line) for line in (finished / "c1_c2" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[0]["cycle_a"] > 0


def test_an_interrupted_run_goes_on_bit_for_bit(market, finished, tmp_path, monkeypatch):
    steps, train_step = [], CycleGAN.train_step

    def interrupted(self, data, optim_wrapper):
        steps.append(1)
        if len(steps) == 4 + 3:  # in the second epoch of the second pair
            raise KeyboardInterrupt
        return train_step(self, data, optim_wrapper)

    monkeypatch.setattr(CycleGAN, "train_step", interrupted)
    context = context_in(tmp_path / "camstyle", market)
    with pytest.raises(KeyboardInterrupt):
        CamStyleStage("camstyle", **TINY).run(context)
    assert (context.work_dir / "c1_c3" / "epoch_1.pth").is_file()
    some = sorted((context.work_dir / "images").iterdir())[:3]
    for path in some:
        path.unlink()  # as if the translation had been cut short, too
    CamStyleStage("camstyle", **TINY).run(context)
    assert len(steps) == 4 + 3 + 2 + 4  # no finished epoch is done again
    weights, images = weights_and_images(context.work_dir)
    expected_weights, expected_images = weights_and_images(finished)
    assert images == expected_images
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected_weights.items())


def test_damaged_generators_are_trained_again(market, tmp_path):
    context, options = context_in(tmp_path / "camstyle", market), dict(TINY, decay_epochs=0, pairs=[(1, 2)])
    CamStyleStage("camstyle", **options).run(context)
    path = context.work_dir / "c1_c2" / "generators.pth"
    whole = load_checkpoint(path)["state_dict"]
    path.write_bytes(path.read_bytes()[:-100])
    CamStyleStage("camstyle", **options).run(context)
    assert all(torch.equal(whole[key], value) for key, value in load_checkpoint(path)["state_dict"].items())


def test_generators_that_were_copied_without_their_checksum_are_taken(market, tmp_path, monkeypatch):
    context, options = context_in(tmp_path / "camstyle", market), dict(TINY, decay_epochs=0, pairs=[(1, 2)])
    CamStyleStage("camstyle", **options).run(context)
    (context.work_dir / "c1_c2" / "generators.pth.sha256").unlink()
    monkeypatch.setattr("visionkit.reid.camstyle.stage.train", lambda *args: 1 / 0)
    CamStyleStage("camstyle", **options).run(context)


def test_the_pools_and_optimisers_are_in_the_checkpoint(market, tmp_path, monkeypatch):
    monkeypatch.setattr("visionkit.reid.camstyle.stage.generator_weights", lambda model: 1 / 0)
    context = context_in(tmp_path / "camstyle", market)
    with pytest.raises(ZeroDivisionError):
        CamStyleStage("camstyle", **TINY, pairs=[(2, 1)]).run(context)
    checkpoint = load_checkpoint(context.work_dir / "c1_c2" / "epoch_2.pth")
    assert checkpoint["state_dict"]["pool_a.images"].shape == (1, 3, 16, 8)
    assert set(checkpoint["optimizer"]) == set(checkpoint["param_schedulers"]) == {"generator", "discriminator"}


def test_a_given_folder_is_checked_and_linked(market, finished, tmp_path):
    context = context_in(tmp_path / "camstyle", market)
    CamStyleStage("camstyle", images=str(finished / "images")).run(context)
    assert (context.work_dir / "images").resolve() == (finished / "images").resolve()
    assert json.loads((context.work_dir / "images.json").read_text())["total"] == 24
    CamStyleStage("camstyle", images=str(finished / "images")).run(context)  # again, over its own link


def test_a_given_folder_of_another_data_set_is_refused(market, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    Image.new("RGB", (8, 16)).save(folder / "0099_c1s1_000001_01_fake_1to2.jpg")
    with pytest.raises(VisionKitError, match="holds no styled image of the data set"):
        CamStyleStage("camstyle", images=str(folder)).run(context_in(tmp_path / "camstyle", market))
    with pytest.raises(VisionKitError, match="no such folder"):
        CamStyleStage("camstyle", images=str(tmp_path / "absent")).run(context_in(tmp_path / "camstyle", market))


@pytest.mark.parametrize("direction, origin", [("AtoB", "s1_"), ("BtoA", "_f0")])
def test_transfer_between_two_data_sets_keeps_one_direction(market, tmp_path, direction, origin):
    target = dict(type="visionkit.DukeMTMCreID", root=str(write_duke(tmp_path / "duke")))
    context = context_in(tmp_path / "camstyle", market, target=target)
    CamStyleStage("camstyle", **TINY, direction=direction).run(context)
    images = list((context.work_dir / "images").iterdir())
    assert len(images) == 12 and all(path.stem.endswith(f"_fake_{direction}") for path in images)
    assert all(origin in path.name for path in images)


def test_test_images_join_by_option(market, tmp_path):
    context = context_in(tmp_path / "camstyle", market)
    options = dict(TINY, epochs=1, decay_epochs=0, iters_per_epoch=1)
    CamStyleStage("camstyle", **options, include_test=True, pairs=[(1, 2)]).run(context)
    images = [path.name for path in (context.work_dir / "images").iterdir()]
    assert len(images) == 9 + 6 + 2 and not any(name.startswith(("0000", "-1")) for name in images)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(direction="both"), "direction='both'; expected None or 'AtoB' or 'BtoA'"),
        (dict(epochs=-1), "epochs=-1; expected a whole number of at least 0"),
        (dict(epochs=0, decay_epochs=0), "at least one epoch"),
        (dict(batch_size=0), "batch_size=0; expected a whole number of at least 1"),
        (dict(test_batch_size=0), "test_batch_size=0"),
        (dict(iters_per_epoch=0), "iters_per_epoch=0"),
        (dict(image_size=(30, 16)), "expected two multiples of 4"),
        (dict(model=dict(pool=3)), "unknown key 'pool'; did you mean 'pool_size'"),
        (
            dict(model=dict(generator=dict(num_block=3))),
            "generator: unknown key 'num_block'; did you mean 'num_blocks'",
        ),
        (dict(load_size=(16, 4)), "load_size=.*is smaller than image_size"),
        (dict(load_size=(16,)), r"load_size=\(16,\); expected \(height, width\)"),
        (dict(image_size=[16]), r"image_size=\(16,\); expected two multiples of 4"),
        (dict(image_size=(4, 4)), r"image_size=\(4, 4\) do not pass through its networks; expected larger"),
        (dict(model=dict(generator=dict(in_channels=1))), "expected larger ones, and networks of 3 channels"),
        (dict(pairs=[]), r"pairs=\[\]; expected pairs of cameras"),
        (dict(pairs=[1, 2]), r"pairs=\[1, 2\]; expected pairs of cameras"),
        (dict(model=dict(pool_size=-1)), "pool_size=-1; expected a whole number of at least 0"),
        (dict(model=dict(identity_weight="x")), "identity_weight='x'; expected a number of at least 0"),
        (dict(model=dict(cycle_weight=-1)), "cycle_weight=-1"),
        (dict(model=dict(generator=dict(num_blocks=-1))), "ResnetGenerator: num_blocks=-1"),
        (dict(model=dict(generator=dict(dropout=2))), "stage camstyle: cannot be built.*dropout"),
        (dict(model=dict(discriminator=dict(ndf=0))), "PatchDiscriminator: ndf=0"),
        (dict(optimizer=dict(lr=1e-3)), "has no type; expected as dict"),
        (dict(optimizer=dict(type="Adam", lr=-1)), "stage camstyle: cannot be built.*learning rate: -1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(VisionKitError, match=message):
        CamStyleStage("camstyle", **dict(TINY, **options))


def test_wrong_cameras_are_named(market, tmp_path):
    for pair, told in (((9, 1), r"\(1, 9\)"), ((1, 2, 3), r"\(1, 2, 3\)")):
        with pytest.raises(VisionKitError, match=f"pairs holds {told}; expected two of the cameras 1, 2, 3"):
            CamStyleStage("camstyle", **TINY, pairs=[pair]).run(context_in(tmp_path, market))
    single = write_market(tmp_path / "single", cams=1)
    with pytest.raises(VisionKitError, match="one camera alone"):
        CamStyleStage("camstyle", **TINY).run(context_in(tmp_path, single))
    with pytest.raises(VisionKitError, match="has no target"):
        CamStyleStage("camstyle", **TINY, direction="AtoB").run(context_in(tmp_path, market))
