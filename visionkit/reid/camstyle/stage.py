"""Stage 0: train CycleGANs between cameras, translate every image, leave a folder of styled images."""

import inspect
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.logging import print_log

from visionkit.checks import check_choice, check_counts, check_keys, given
from visionkit.datasets.images import is_size
from visionkit.datasets.styled import styled_name
from visionkit.engine.checkpoints import is_whole, load_checkpoint, remove_checkpoint, save_checkpoint
from visionkit.engine.config import building
from visionkit.engine.epoch_files import epoch_checkpoints
from visionkit.engine.pipeline import Context
from visionkit.engine.stage import train
from visionkit.errors import VisionKitError
from visionkit.files import write_text
from visionkit.registry import STAGES
from visionkit.reid.camstyle.data import UnalignedPairs, camera_images
from visionkit.reid.camstyle.files import check_styled_folder, origins_by_name
from visionkit.reid.camstyle.model import CycleGAN, CycleGANOptimizers, generator_weights, linear_decay, load_generators
from visionkit.reid.camstyle.networks import PatchDiscriminator, ResnetGenerator
from visionkit.reid.camstyle.sheet import write_sheet
from visionkit.reid.camstyle.translate import translate_files
from visionkit.reid.stages import domain

GENERATORS = "generators.pth"


@dataclass(frozen=True)
class Transfer:
    """One CycleGAN: the files of its two sides, their labels in file names, and which translations are kept."""

    a: list[str]
    b: list[str]
    labels: tuple[str, str]
    directions: tuple[str, ...] = ("ab", "ba")

    def translated(self) -> list[tuple[str, list[str], tuple[str, str]]]:
        """What is translated: direction, the files, the labels from and to."""
        sides = {"ab": (self.a, self.labels), "ba": (self.b, self.labels[::-1])}
        return [(direction, *sides[direction]) for direction in self.directions]

    @property
    def folder(self) -> str:
        """Name of its work folder."""
        return "c{}_c{}".format(*self.labels)


@STAGES.register_module()
class CamStyleStage:
    """Gives every image of the source data set the style of each other camera.

    The stage's folder receives ``images/<original stem>_fake_<A>to<B>.jpg`` (cameras counting from 1, each image of its
    origin's size), ``sheet.jpg``, ``images.json`` with the counts, and for each pair of cameras a folder ``cA_cB`` with
    its log and the two generators. Training images can then be read with ``styled=dict(root=".../images")``.

    Args:
        name: The stage's name.
        include_test: Whether query and gallery images are trained on and translated too. Results on the source's own
            test images mean nothing then. The stage that trains on the styled images has this option as well.
        images: A folder of styled images made before. Nothing is trained; the folder is checked and linked.
        pairs: The pairs of cameras, counting from 1; all by default.
        direction: ``"AtoB"`` trains one CycleGAN between the source (A) and the target (B) data set instead and keeps
            only the source images in the target's style; ``"BtoA"`` the other way round.
        model: Options of `CycleGAN`.
        image_size: (height, width) at which the networks work; multiples of 4.
        load_size: (height, width) before the random crop in training.
        epochs: Epochs at the full learning rate.
        decay_epochs: Epochs with a rate falling towards 0.
        iters_per_epoch: Iterations of an epoch; by default each image of the larger side comes once.
        batch_size: Images of each side in a training step.
        optimizer: Optimiser of the generators and of the discriminators.
        test_batch_size: Images translated at once.
        sheet_rows: Rows of the picture.
    """

    def __init__(
        self,
        name: str,
        include_test: bool = False,
        images: str | None = None,
        pairs: Sequence[Sequence[int]] | None = None,
        direction: str | None = None,
        model: dict[str, Any] | None = None,
        image_size: Sequence[int] = (256, 256),
        load_size: Sequence[int] = (286, 286),
        epochs: int = 30,
        decay_epochs: int = 20,
        iters_per_epoch: int | None = None,
        batch_size: int = 1,
        optimizer: dict[str, Any] | None = None,
        test_batch_size: int = 16,
        sheet_rows: int = 8,
    ) -> None:
        self.name = name
        self.include_test = include_test
        self.images = images
        self.pairs = pairs
        self.direction = direction
        self.model = dict(model or {})
        self.image_size, self.load_size = tuple(image_size), tuple(load_size)
        self.epochs, self.decay_epochs = epochs, decay_epochs
        self.iters_per_epoch = iters_per_epoch
        self.batch_size = batch_size
        self.optimizer = optimizer or dict(type="Adam", lr=2e-4, betas=(0.5, 0.999))
        self.test_batch_size = test_batch_size
        self.sheet_rows = sheet_rows
        with building(f"stage {name}"):
            self._check_options()

    def run(self, context: Context) -> None:
        """Train what is not trained, translate what is not translated, and show some of it."""
        with building(f"stage {self.name}"):
            transfers = self.transfers(context)
            origins = origins_by_name(_labels(transfers), self._left_alone(context))
        folder = context.work_dir / "images"
        if self.images is not None:
            _link(Path(self.images), folder)
        else:
            names = {path: name for name, (path, _) in origins.items()}
            for number, transfer in enumerate(transfers, 1):
                print_log(f"{self.name}: {transfer.folder}, {number} of {len(transfers)}", "current")
                self._train(transfer, context)
                self._translate(transfer, names, context)
        if is_main_process():
            labels = sorted({label for transfer in transfers for label in transfer.labels}, key=lambda x: (len(x), x))
            self._report(folder, origins, labels, context)
        barrier()

    def transfers(self, context: Context) -> list[Transfer]:
        """The CycleGANs to train: one for each pair of cameras, or one between two data sets."""
        if self.direction is not None:
            a, b = (self._all_images(context, which) for which in ("source", "target"))
            return [Transfer(a, b, ("A", "B"), ("ab",) if self.direction == "AtoB" else ("ba",))]
        files = {camera + 1: paths for camera, paths in self._images_of_cameras(context, "source").items()}
        if len(files) < 2:
            raise VisionKitError(
                f"stage {self.name}: the data set has one camera alone; leave the stage out, by "
                f"stages.{self.name}=None and styled=None in the stage that uses it"
            )
        return [Transfer(files[a], files[b], (str(a), str(b))) for a, b in self._pairs(list(files))]

    def _left_alone(self, context: Context) -> list[str]:
        """The source's images, also of cameras that are in none of the ``pairs``."""
        return [] if self.pairs is None else self._all_images(context, "source")

    def _images_of_cameras(self, context: Context, which: str) -> dict[int, list[str]]:
        return camera_images(domain(context.cfg, which), self.include_test)

    def _all_images(self, context: Context, which: str) -> list[str]:
        return list(itertools.chain(*self._images_of_cameras(context, which).values()))

    def _pairs(self, cameras: list[int]) -> list[tuple[int, int]]:
        everything = list(itertools.combinations(cameras, 2))
        if self.pairs is None:
            return everything
        chosen = [tuple(sorted(pair)) for pair in self.pairs]
        for pair in chosen:
            if pair not in everything:
                known = ", ".join(map(str, cameras))
                raise VisionKitError(f"stage {self.name}: pairs holds {pair}; expected two of the cameras {known}")
        return chosen

    def _check_options(self) -> None:
        counts = dict(batch_size=self.batch_size, test_batch_size=self.test_batch_size, sheet_rows=self.sheet_rows)
        check_counts(f"stage {self.name}", 1, **counts, **given(iters_per_epoch=self.iters_per_epoch))
        check_counts(f"stage {self.name}", 0, epochs=self.epochs, decay_epochs=self.decay_epochs)
        if self.epochs + self.decay_epochs == 0:
            raise VisionKitError(
                f"stage {self.name}: epochs=0 and decay_epochs=0; expected at least one epoch together"
            )
        check_choice(f"stage {self.name}", (None, "AtoB", "BtoA"), direction=self.direction)
        if self.pairs is not None and not (self.pairs and all(isinstance(pair, Sequence) for pair in self.pairs)):
            raise VisionKitError(
                f"stage {self.name}: pairs={self.pairs!r}; expected pairs of cameras, as [(1, 2)], or None for all"
            )
        if "type" not in self.optimizer:
            raise VisionKitError(
                f"stage {self.name}: optimizer={self.optimizer} has no type; expected as dict(type='Adam', lr=2e-4)"
            )
        if not is_size(self.image_size) or any(side % 4 for side in self.image_size):
            raise VisionKitError(f"stage {self.name}: image_size={self.image_size}; expected two multiples of 4")
        if not is_size(self.load_size):
            raise VisionKitError(f"stage {self.name}: load_size={self.load_size}; expected (height, width) in pixels")
        if any(load < side for load, side in zip(self.load_size, self.image_size)):
            raise VisionKitError(
                f"stage {self.name}: load_size={self.load_size} is smaller than image_size={self.image_size}; "
                "images are cropped from load_size, make it about an eighth larger"
            )
        where = f"stage {self.name}, model"
        check_keys(self.model, ["type", *inspect.signature(CycleGAN).parameters], where)
        for part, network in (("generator", ResnetGenerator), ("discriminator", PatchDiscriminator)):
            check_keys(self.model.get(part) or {}, inspect.signature(network).parameters, f"{where}.{part}")
        self._try_model()

    def _try_model(self) -> None:
        """Build what is trained, and translate once, which takes no memory on this device."""
        with torch.device("meta"):
            model = CycleGAN(**{option: value for option, value in self.model.items() if option != "type"})
            images = torch.zeros(1, 3, *self.image_size)
        CycleGANOptimizers(dict(optimizer=self.optimizer))(model)
        try:
            model.generator_losses(dict(a=images, b=images))
        except Exception as error:
            raise VisionKitError(
                f"stage {self.name}: images of image_size={self.image_size} do not pass through its networks; expected "
                "larger ones, and networks of 3 channels"
            ) from error

    def _train(self, transfer: Transfer, context: Context) -> None:
        """Leaves ``generators.pth``; the epochs' checkpoints, ten times as large, go once it is there."""
        folder = context.work_dir / transfer.folder
        if not ((folder / GENERATORS).is_file() and is_whole(folder / GENERATORS)):
            runner = train(self.runner_cfg(transfer, context), folder, context.seed, context.launcher)
            if is_main_process():
                save_checkpoint(dict(state_dict=generator_weights(runner.bare_model)), folder / GENERATORS)
        if is_main_process():
            for path in epoch_checkpoints(folder):
                remove_checkpoint(path)
        barrier()

    def runner_cfg(self, transfer: Transfer, context: Context) -> dict[str, Any]:
        """The Runner's config of one CycleGAN."""
        dataset = UnalignedPairs(transfer.a, transfer.b, self.load_size, self.image_size)
        iterations = self.iters_per_epoch or max(1, len(dataset) // (self.batch_size * get_world_size()))
        workers = context.cfg.get("workers", 0)
        return dict(
            model=dict(self.model, type="visionkit.CycleGAN"),
            train_dataloader=dict(pair=dict(batch_size=self.batch_size, num_workers=workers, dataset=dataset)),
            train_cfg=dict(
                type="visionkit.NamedLoadersTrainLoop",
                max_epochs=self.epochs + self.decay_epochs,
                iters_per_epoch=iterations,
            ),
            optim_wrapper=dict(constructor="visionkit.CycleGANOptimizers", optimizer=dict(self.optimizer)),
            param_scheduler=linear_decay(self.epochs, self.decay_epochs),
            model_wrapper_cfg=dict(type="visionkit.CycleGANDistributed"),
        )

    def _translate(self, transfer: Transfer, names: dict[str, str], context: Context) -> None:
        """Writes this process's share of the translations of one CycleGAN; ``names`` are the originals'."""
        checkpoint = load_checkpoint(context.work_dir / transfer.folder / GENERATORS)
        generators = load_generators(checkpoint["state_dict"], self.model.get("generator"))
        folder = context.work_dir / "images"
        folder.mkdir(parents=True, exist_ok=True)
        share = slice(get_rank(), None, get_world_size())
        for direction, files, labels in transfer.translated():
            paths = files[share]
            outputs = [folder / styled_name(names[path], *labels) for path in paths]
            written = translate_files(
                generators[direction], paths, outputs, self.image_size, self.test_batch_size, get_device()
            )
            print_log("{}: {} images {}to{}, {} of them now".format(self.name, len(paths), *labels, written), "current")
        barrier()

    def _report(self, folder: Path, origins: dict[str, tuple[str, str]], labels: list[str], context: Context) -> None:
        counts = check_styled_folder(folder, origins, labels)
        total = sum(counts.values())
        print_log(f"{self.name}: {total} styled images of {len(origins)} originals in {folder}", "current")
        table = {f"{a}to{b}": count for (a, b), count in sorted(counts.items())}
        write_text(context.work_dir / "images.json", json.dumps(dict(total=total, **table), indent=1))
        write_sheet(context.work_dir, folder, origins, labels, self.sheet_rows)


def _labels(transfers: list[Transfer]) -> dict[str, str]:
    """Every file that gets a style, with its camera's label."""
    return {path: label for each in transfers for _, files, (label, _) in each.translated() for path in files}


def _link(given: Path, folder: Path) -> None:
    """Makes ``folder`` stand for the given one."""
    if not given.is_dir():
        raise VisionKitError(f"{given}: no such folder; images= names a folder of <stem>_fake_<A>to<B>.jpg files")
    if is_main_process() and not (folder.is_symlink() and folder.resolve() == given.resolve()):
        folder.unlink(missing_ok=True)
        os.symlink(given.resolve(), folder, target_is_directory=True)
    barrier()
