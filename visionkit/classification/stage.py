"""The papers' classification recipe as a Runner config."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_world_size

from visionkit.checks import check_counts, given
from visionkit.engine.config import plain
from visionkit.engine.loaders import build_dataset
from visionkit.engine.pipeline import Context
from visionkit.engine.schedules import warmup_cosine
from visionkit.engine.stage import RunnerStage
from visionkit.errors import VisionKitError
from visionkit.registry import STAGES


@STAGES.register_module()
class ClassificationStage(RunnerStage):
    """Trains a classifier with AdamW, a linear warm-up and a cosine.

    The config's ``source`` is the data set, as ``dict(type="visionkit.ImageClasses", root="data/imagenet")``, and its
    ``image_size`` that of the crops.

    Args:
        name: the stage's name.
        model: options of [visionkit.classification.model.ImageClassifier].
        batch_size: images in a step of one process.
        epochs, warmup_epochs: length of the training, and of its warm-up.
        iters_per_epoch: steps of an epoch; None for as many as the data set fills.
        lr, lr_batch: learning rate for a batch of ``lr_batch`` images over all processes; the rate used is scaled with
            the batch.
        warmup_lr, min_lr: the first and the last rate.
        weight_decay: AdamW's weight decay, for all parameters but vectors and class tokens.
        clip: largest norm of the gradient; None for no clipping.
        ema: decay of the running mean of the weights, which is what is evaluated and saved as ``state_dict``; None
            keeps the plain weights.
        repeats: number of times that an epoch shows an image, each time augmented anew (repeated augmentation).
        sync_bn: batch norms take their statistics over all GPUs.
        report, init_from: see [RunnerStage].
    """

    def __init__(
        self,
        name: str,
        model: dict[str, Any],
        batch_size: int = 128,
        epochs: int = 300,
        warmup_epochs: int = 5,
        iters_per_epoch: int | None = None,
        lr: float = 1e-3,
        lr_batch: int = 1024,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        weight_decay: float = 0.05,
        clip: float | None = None,
        ema: float | None = 0.99992,
        repeats: int = 1,
        sync_bn: bool = False,
        report: str | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__(name, report=report, init_from=init_from)
        check_counts(f"stage {name}", 1, batch_size=batch_size, epochs=epochs, **given(iters_per_epoch=iters_per_epoch))
        check_counts(f"stage {name}", 0, warmup_epochs=warmup_epochs)
        if warmup_epochs >= epochs:
            raise VisionKitError(f"stage {name}: warmup_epochs={warmup_epochs}; expected 0 to {epochs - 1}")
        self.model, self.batch_size, self.epochs, self.warmup_epochs = model, batch_size, epochs, warmup_epochs
        self.iters_per_epoch, self.lr, self.lr_batch = iters_per_epoch, lr, lr_batch
        self.warmup_lr, self.min_lr, self.weight_decay = warmup_lr, min_lr, weight_decay
        self.clip, self.ema, self.repeats, self.sync_bn = clip, ema, repeats, sync_bn

    def runner_cfg(self, context: Context) -> dict[str, Any]:
        """The Runner's config."""
        cfg = self.test_cfg(context, {})
        images = self.batch_size * get_world_size()
        data = self._data(context, "train")
        steps = self.iters_per_epoch
        if steps is None:
            steps = max(1, len(build_dataset(data)) // images)
        workers = context.cfg.get("workers", 0)
        sampler = dict(type="visionkit.RepeatedAugmentationSampler", repeats=self.repeats)
        loader = dict(batch_size=self.batch_size, num_workers=workers, dataset=data, sampler=sampler)
        rate = self.lr * images / self.lr_batch
        clip = {} if self.clip is None else dict(clip_grad=dict(max_norm=self.clip))
        cfg.update(
            train_dataloader=dict(images=loader),
            train_cfg=dict(
                type="visionkit.NamedLoadersTrainLoop", max_epochs=self.epochs, iters_per_epoch=steps, val_interval=10
            ),
            val_dataloader=cfg["test_dataloader"],
            val_cfg=dict(type="ValLoop"),
            val_evaluator=cfg["test_evaluator"],
            optim_wrapper=dict(
                type="OptimWrapper",
                optimizer=dict(type="AdamW", lr=rate, weight_decay=self.weight_decay),
                paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=dict(cls_token=dict(decay_mult=0.0))),
                **clip,
            ),
            param_scheduler=warmup_cosine(
                self.warmup_epochs * steps, self.epochs * steps, min(1, self.warmup_lr / rate), min(rate, self.min_lr)
            ),
            custom_hooks=[] if self.ema is None else [dict(type="EMAHook", momentum=1 - self.ema)],
            log_interval=min(50, steps),
            best="top-1",
            **(dict(sync_bn="torch") if self.sync_bn else {}),
        )
        return cfg

    def test_cfg(self, context: Context, state: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The Runner's config without its training."""
        return dict(
            model=dict(self.model, type="visionkit.ImageClassifier"),
            image_size=list(context.cfg["image_size"]),
            test_dataloader=dict(
                batch_size=self.batch_size,
                num_workers=context.cfg.get("workers", 0),
                dataset=self._data(context, "val"),
            ),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=dict(type="visionkit.TopK"),
        )

    def _data(self, context: Context, split: str) -> dict[str, Any]:
        if "source" not in context.cfg:
            raise VisionKitError(
                "config: has no source; expected source = dict(type='visionkit.ImageClasses', root=...)"
            )
        return dict(plain(context.cfg["source"]), split=split, image_size=tuple(context.cfg["image_size"]))
