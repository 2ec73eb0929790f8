"""NViST's two training stages, as Runner configs: fine-tuning of the masked autoencoder, then the whole model.

Both read the data set from the config's ``source`` and the image size from its ``image_size``.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch.utils.data import default_collate

from visionkit.checks import check_above, check_counts, check_keys, given
from visionkit.engine.config import plain
from visionkit.engine.pipeline import Context
from visionkit.engine.runner import VisionKitRunner
from visionkit.engine.schedules import warmup_cosine
from visionkit.engine.stage import RunnerStage
from visionkit.errors import VisionKitError
from visionkit.nvs.encoder import MaskedAutoencoder
from visionkit.nvs.model import NViST
from visionkit.nvs.pictures import save_picture, stacked, view_sheet
from visionkit.registry import HOOKS, METRICS, MODELS, STAGES

FIRST_SHARE, LAST_RATE = 1e-3, 1e-6  # of the warm-up and of the cosine
PARTS = ("encoder", "decoder", "renderer")
# options in which a scored model may differ from the trained one: those of training, rendering, and the image size,
# for which the shapes of the weights are checked
FREE = {
    "img_size", "num_samples", "jitter", "whole_view", "extra_rays", "lpips_weight", "distortion_weight",
    "depth_weight", "lpips_scaling", "bf16", "chunk", "mae_checkpoint",
}  # fmt: skip


class ScenesStage(RunnerStage):
    """What both stages share: loaders, AdamW with warm-up and cosine, gradient clipping, mean weights.

    Args:
        name: the stage's name.
        model: options of the model.
        epochs, iters_per_epoch: number of epochs, and of steps in each.
        batch_size: scenes in a step.
        views: views of a scene in a step, the input view included.
        warmup_iters: steps of the linear warm-up; a cosine to 1e-6 follows.
        clip: largest norm of the gradient.
        ema: decay of the running mean of the weights, which is what is evaluated and saved as ``state_dict``; None
            keeps the plain weights.
        test: options of the data set in evaluation.
        report, init_from: see [RunnerStage].
    """

    model_type: str

    def __init__(
        self,
        name: str,
        model: dict[str, Any] | None = None,
        epochs: int = 300,
        iters_per_epoch: int = 1000,
        batch_size: int = 11,
        views: int = 5,
        warmup_iters: int = 10000,
        clip: float = 1.0,
        ema: float | None = 0.995,
        test: dict[str, Any] | None = None,
        report: str | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(name, report=report, init_from=init_from)
        check_counts(f"stage {name}", 1, epochs=epochs, iters_per_epoch=iters_per_epoch, batch_size=batch_size)
        check_counts(f"stage {name}", 2, views=views)
        check_counts(f"stage {name}", 0, warmup_iters=warmup_iters)
        check_above(f"stage {name}", 0, clip=clip, **given(ema=ema))
        if ema is not None and ema >= 1:
            raise VisionKitError(f"stage {name}: ema={ema}; expected a decay between 0 and 1, as 0.995, or None")
        if warmup_iters >= epochs * iters_per_epoch:
            raise VisionKitError(
                f"stage {name}: warmup_iters={warmup_iters}; expected less than the "
                f"{epochs * iters_per_epoch} steps of the training"
            )
        self.model = dict(model or {})
        check_keys([key for key in self.model if key != "type"], self.model_options(), f"stage {name}, model")
        self.epochs, self.iters_per_epoch = epochs, iters_per_epoch
        self.batch_size, self.views = batch_size, views
        self.warmup_iters, self.clip, self.ema = warmup_iters, clip, ema
        self.test_data = dict(test or {})  # `test` is the method that scores a checkpoint

    def check(self, cfg: Config, earlier: Sequence[str]) -> None:
        """See [RunnerStage]. Raises VisionKitError also for a model or a metric that cannot be built."""
        super().check(cfg, earlier)
        if self.report:
            METRICS.build(self.evaluator())
        with torch.device("meta"), warnings.catch_warnings():  # takes no memory
            warnings.simplefilter("ignore")  # that weights which are read go nowhere
            MODELS.build(self.model_cfg(cfg))

    def model_cfg(self, cfg: Config) -> dict[str, Any]:
        """The model's config."""
        return dict(self.model, type=self.model_type, img_size=tuple(cfg["image_size"]))

    def model_options(self) -> list[str]:
        """Names of what ``model`` may hold."""
        raise NotImplementedError

    def optimizer(self) -> dict[str, Any]:
        """Config of the optimiser's wrapper without the clipping."""
        raise NotImplementedError

    def runner_cfg(self, context: Context) -> dict[str, Any]:
        """The Runner's config."""
        cfg = dict(
            model=self.model_cfg(context.cfg),
            train_dataloader=dict(
                scenes=dict(
                    batch_size=self.batch_size,
                    num_workers=context.cfg.get("workers", 0),
                    dataset=self.data(context, split="train", views=self.views),
                )
            ),
            train_cfg=dict(
                type="visionkit.NamedLoadersTrainLoop", max_epochs=self.epochs, iters_per_epoch=self.iters_per_epoch
            ),
            optim_wrapper=dict(self.optimizer(), clip_grad=dict(max_norm=self.clip)),
            param_scheduler=warmup_cosine(
                self.warmup_iters, self.epochs * self.iters_per_epoch, FIRST_SHARE, LAST_RATE
            ),
            custom_hooks=self.hooks(),
            image_size=list(context.cfg["image_size"]),
            log_interval=min(50, self.iters_per_epoch),
        )
        if self.report:
            cfg.update(
                test_dataloader=dict(batch_size=1, dataset=self.data(context, split="test", **self.test_data)),
                test_cfg=dict(type="TestLoop"),
                test_evaluator=self.evaluator(),
            )
        return cfg

    def hooks(self) -> list[dict[str, Any]]:
        """The mean weights' hook, and the one that notes the scenes' scale."""
        mean = [] if self.ema is None else [dict(type="EMAHook", momentum=1 - self.ema)]
        return [*mean, dict(type="visionkit.SceneScaleHook")]

    def evaluator(self) -> dict[str, Any]:
        """The metric's config; only a stage that reports has one."""
        raise NotImplementedError

    def data(self, context: Context, **options: Any) -> dict[str, Any]:
        """Config of the data set's split."""
        if "source" not in context.cfg:
            raise VisionKitError("config: has no source; expected source = dict(type='visionkit.MVImgNet', root=...)")
        return dict(plain(context.cfg["source"]), img_size=tuple(context.cfg["image_size"]), **options)


@STAGES.register_module()
class MAEStage(ScenesStage):
    """Fine-tunes a masked autoencoder on single views; `NViSTStage(init_from=...)` starts from it.

    Args:
        name: the stage's name.
        lr: AdamW's learning rate.
        batch_size, views: scenes in a step and views of each; all views are masked and reconstructed.
        **options: see [ScenesStage]; ``model`` are options of [visionkit.nvs.model.MAEFineTuning].
    """

    model_type = "visionkit.MAEFineTuning"

    def __init__(
        self,
        name: str,
        lr: float = 1e-4,
        batch_size: int = 42,
        views: int = 2,
        warmup_iters: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(name, batch_size=batch_size, views=views, warmup_iters=warmup_iters, **options)
        check_above(f"stage {name}", 0, lr=lr)
        self.lr = lr
        if self.report:
            raise VisionKitError(f"stage {name}: report={self.report!r}; this stage predicts no views, leave it out")

    def model_options(self) -> list[str]:
        """Names of what ``model`` may hold."""
        return ["bf16", "mae_checkpoint", *inspect.signature(MaskedAutoencoder).parameters]

    def optimizer(self) -> dict[str, Any]:
        """AdamW on everything."""
        return dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=self.lr))


@STAGES.register_module()
class NViSTStage(ScenesStage):
    """Trains the whole model.

    Args:
        name: the stage's name.
        lr: AdamW's learning rates by part: ``encoder`` (default 4e-5), ``decoder`` and ``renderer`` (2e-4 each).
        metric: options of [visionkit.nvs.metrics.ViewMetric].
        **options: see [ScenesStage]; ``model`` are options of [visionkit.nvs.model.NViST].
    """

    model_type = "visionkit.NViST"

    def __init__(
        self,
        name: str,
        lr: dict[str, float] | None = None,
        metric: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name, **options)
        self.lr = dict(dict(encoder=4e-5, decoder=2e-4, renderer=2e-4), **(lr or {}))
        check_keys(self.lr, PARTS, f"stage {name}, lr")
        check_above(f"stage {name}, lr", 0, **self.lr)
        self.metric = dict(metric or {})

    def model_options(self) -> list[str]:
        """Names of what ``model`` may hold."""
        return list(inspect.signature(NViST).parameters)

    def optimizer(self) -> dict[str, Any]:
        """AdamW with one rate per part."""
        base = self.lr["decoder"]
        parts = {f"{part}.": dict(lr_mult=rate / base) for part, rate in self.lr.items()}
        return dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=base), paramwise_cfg=dict(custom_keys=parts))

    def evaluator(self) -> dict[str, Any]:
        """The metric's config."""
        return dict(type="visionkit.ViewMetric", **self.metric)

    def weights(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """See the base class.

        Raises:
            VisionKitError: the model that was trained had another grid, other heads, ...: weights fit by shape alone.
        """
        try:
            trained = dict(json.loads(content["meta"]["model"]))
        except (KeyError, TypeError, ValueError):  # weights from elsewhere, which do not tell
            return super().weights(content, path)
        for option, parameter in inspect.signature(NViST).parameters.items():
            here, there = (options.get(option, parameter.default) for options in (self.model, trained))
            if option not in FREE and here != there:
                raise VisionKitError(
                    f"{path}: was trained with {option}={there!r}, stage {self.name} says {here!r}; give the same there"
                )
        return super().weights(content, path)

    def test_cfg(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        """The Runner's config without its training; what the weights began from need not be at hand."""
        cfg = super().test_cfg(context, state)
        return dict(cfg, model=dict(cfg["model"], mae_checkpoint=None))

    def finish(self, runner: VisionKitRunner, context: Context) -> None:
        """Leaves ``views.jpg``: test scenes, each with its input view and pairs of a target and what was rendered."""
        if self.report and is_main_process():
            draw_views(runner, context.work_dir / "views.jpg")


SHEET_SCENES, SHEET_PAIRS = 6, 3


@torch.no_grad()
def draw_views(runner: VisionKitRunner, path: Path) -> None:
    """Renders a few views of a few test scenes with the runner's model."""
    data = runner.test_dataloader.dataset
    model = runner.bare_model.eval()
    rows = []
    for index in np.unique(np.linspace(0, len(data) - 1, SHEET_SCENES).round().astype(int)):
        scene = default_collate([data[int(index)]])
        count = scene["image"].shape[1]
        chosen = [0, *np.unique(np.linspace(1, count - 1, SHEET_PAIRS).round().astype(int))]
        few = {key: scene[key][:, chosen] for key in ("image", "c2w", "focal")}
        inputs = model.data_preprocessor(dict(few, camera_params=scene["camera_params"], near_far=scene["near_far"]))
        rows.append(view_sheet(few["image"][0], model(**inputs, mode="predict")[0].cpu(), SHEET_PAIRS))
    save_picture(stacked(rows), path)


@HOOKS.register_module()
class SceneScaleHook(Hook):
    """Notes in every checkpoint ``near_far``, ``distance`` and ``centre``, which inference must know of its scenes."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add them to the checkpoint's ``meta``."""
        data = runner.train_loop.dataloaders["scenes"]
        near_far = [float(each) for each in data.near_far]
        checkpoint["meta"].update(near_far=near_far, distance=data.distance, centre=data.centre)
