"""The networks of CORE-ReID's two training stages, as mmengine models.

CORE-ReID: arXiv 2508.03064; V2: arXiv 2508.04036. Where the papers' figures and the released code differ, these follow
the code (pooling by GAP + GMP, stage 1's triplets before the neck), except where an option says otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from visionkit.checks import check_choice, check_counts, check_keys, check_numbers, given
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS
from visionkit.reid.encoder import Classifier, Encoded, ReIDEncoder, build_backbone, last_map, norm_groups
from visionkit.reid.fusion import PARTS, EnsembleFusion, frozen_bias_norm
from visionkit.reid.losses import softmax_triplet_loss
from visionkit.reid.mean_teacher import BUFFER_POLICIES, ema_alpha, update_teacher
from visionkit.reid.published import one_network, what_fits

Batch = Mapping[str, Any]

SOURCE_LOSSES = dict(id=1.0, triplet=1.0)
CORE_LOSSES = dict(id=1.0, triplet=1.0, triplet_top=0.5, triplet_bottom=0.5, fusion=0.5)
PRESETS: dict[str, dict[str, Any]] = {
    "default": dict(secab=True, losses=CORE_LOSSES),
    "released": dict(secab=False, losses=dict(CORE_LOSSES, fusion=0.0)),
}


class ReIDModel(BaseModel):
    """What both stages' models share: the call conventions and the test descriptor.

    ``forward(**batches, mode="loss")`` takes a batch of items per loader and returns named losses;
    ``forward(image=..., mode="predict")`` takes one batch of items and returns descriptors.

    Args:
        bmfn: Bidirectional Mean Feature Normalization: average with the features of the mirrored image, then L2.
        label_smoothing: epsilon of the classification loss.
    """

    def __init__(self, bmfn: bool, label_smoothing: float) -> None:
        super().__init__()
        check_numbers("model", 0, 1, label_smoothing=label_smoothing)
        self.bmfn = bmfn
        self.label_smoothing = label_smoothing

    def descriptor(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> L2-normalised features (B, D), in the module's present mode, without BMFN."""
        raise NotImplementedError

    def extract(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> L2-normalised test descriptors (B, D), in eval mode and without gradient."""
        with evaluating(self):
            return F.normalize(self._both_ways(lambda x: (self.descriptor(x),), image)[0])

    def _both_ways(self, features_of: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor) -> tuple[Tensor, ...]:
        """Features, with BMFN averaged over the image and its mirror image."""
        image = image.to(next(self.parameters()).device)
        features = features_of(image)
        if not self.bmfn:
            return features
        return tuple((one + other) / 2 for one, other in zip(features, features_of(image.flip(3))))

    def _id_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        check_labels(labels, logits.shape[1])
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@MODELS.register_module()
class SourceReID(ReIDModel):
    """Stage 1: GAP, BNNeck and classifier, trained on the source's identities.

    Args:
        backbone: MODELS config of a backbone, or a module with ``num_features``.
        num_classes: identities of the source.
        losses: weights of ``id`` (label-smoothed cross-entropy after the neck) and ``triplet`` (softmax-triplet before
            it), over the default of 1 each.
        bmfn, label_smoothing: see :class:`ReIDModel`.
        bn_group_size: see :class:`~visionkit.reid.encoder.ReIDEncoder`.
    """

    def __init__(
        self,
        backbone: Mapping | nn.Module,
        num_classes: int,
        losses: Mapping[str, float] | None = None,
        bmfn: bool = True,
        label_smoothing: float = 0.1,
        bn_group_size: int | None = None,
    ) -> None:
        super().__init__(bmfn, label_smoothing)
        check_counts("model", 2, **given(bn_group_size=bn_group_size))  # of one image a norm learns nothing
        self.losses = with_defaults(losses, SOURCE_LOSSES)
        self.backbone = build_backbone(backbone)
        self.bn = frozen_bias_norm(self.backbone.num_features)
        self.classifier = Classifier(self.backbone.num_features, num_classes)
        self.bn_group_size = bn_group_size

    def load_source(self, state_dict: Mapping[str, Tensor]) -> None:
        """Start from a checkpoint of either stage; a classifier of other identities is left out.

        Raises:
            VisionKitError: its backbone is another one.
        """
        self.load_state_dict(what_fits(self.state_dict(), one_network(state_dict)), strict=False)

    def forward(
        self,
        source: Batch | None = None,
        target: Batch | None = None,
        mode: str = "loss",
        image: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor] | Tensor:
        """``loss``: of a batch of ``source`` items; a ``target`` batch only moves the batch norms' statistics (MMT).

        ``predict``: descriptors (B, C) of ``image``.
        """
        if is_prediction(mode):
            return self.extract(image)
        features, necked = self._encode(needed_batch("source", source)["image"])
        labels = source["pid"]
        losses = {}
        if weight := self.losses["id"]:
            losses["loss_id"] = weight * self._id_loss(self.classifier(necked), labels)
        if weight := self.losses["triplet"]:
            losses["loss_triplet"] = weight * softmax_triplet_loss(features, labels)
        if target is not None:
            with torch.no_grad():
                self._encode(target["image"])
        return losses

    def descriptor(self, image: Tensor) -> Tensor:
        """See :class:`ReIDModel`: (B, 3, H, W) -> the feature after the neck (B, C)."""
        return F.normalize(self._encode(image)[1])

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C) before and after the neck."""
        pairs = []
        for group in norm_groups(image, self.bn_group_size if self.training else None):
            feature = last_map(self.backbone(group)).mean((2, 3))
            pairs.append((feature, self.bn(feature)))
        features, necked = zip(*pairs)
        return torch.cat(features), torch.cat(necked)


@MODELS.register_module()
class CoreReID(ReIDModel):
    """Stage 2: student, mean teacher and Ensemble Fusion, trained on the target's pseudo-labels.

    Each view (global, top, bottom) has labels and batches of its own. Losses, with their default weights: ``id`` 1 and
    ``triplet`` 1 on the student's global feature, ``triplet_top`` and ``triplet_bottom`` 0.5 on its local ones, and
    ``fusion`` 0.5: the mean, over the parts, of the softmax-triplet on the fused feature with that part's labels. The
    last is an extension: the published method never trains its fusion. Its gradient reaches ECAB, SECAB and the
    student, not the teacher.

    Args:
        backbone: MODELS config of a backbone, or a module with ``num_features``.
        num_classes: the largest number of clusters that there may be.
        preset: ``default``; ``released``: no fusion loss and no SECAB, as the released code. Options given override it.
        losses: weights over the preset's; 0 leaves a loss out. ``fusion`` 0 freezes the fusion at its initial values.
        ecab: True, False or ``"released"``; see :class:`~visionkit.reid.fusion.EnsembleFusion`.
        secab: weight the teacher's map by SECAB; None: the preset's.
        local: local branches; without them there is one view, ``global_view``.
        mean_teacher: without it the student takes the teacher's place everywhere.
        ema_limit: largest share of itself that the teacher keeps in a step.
        ema_buffers: ``own``: the teacher's batch norms run in training mode on its own batches (released code);
            ``copy`` or ``average``: they take or average the student's statistics, and the teacher runs in eval mode.
        bmfn, label_smoothing: see :class:`ReIDModel`.
        bn_group_size: see :class:`~visionkit.reid.encoder.ReIDEncoder`.
    """

    def __init__(
        self,
        backbone: Mapping | nn.Module,
        num_classes: int,
        preset: str = "default",
        losses: Mapping[str, float] | None = None,
        ecab: bool | str = True,
        secab: bool | None = None,
        local: bool = True,
        bmfn: bool = True,
        mean_teacher: bool = True,
        ema_limit: float = 0.999,
        ema_buffers: str = "own",
        label_smoothing: float = 0.1,
        bn_group_size: int | None = None,
    ) -> None:
        super().__init__(bmfn, label_smoothing)
        check_choice("model", PRESETS, preset=preset)
        check_choice("model", BUFFER_POLICIES, ema_buffers=ema_buffers)
        check_numbers("model", 0, 1, ema_limit=ema_limit)
        settings = PRESETS[preset]
        self.losses = with_defaults(losses, settings["losses"])
        self.parts = PARTS if local else PARTS[:1]
        self.student = ReIDEncoder(backbone, num_classes, local, bn_group_size)
        self.teacher = deepcopy(self.student).requires_grad_(False) if mean_teacher else None
        secab = settings["secab"] if secab is None else secab
        self.fusion = EnsembleFusion(self.student.num_features, ecab, secab, local)
        for name, parameter in self.fusion.named_parameters():
            # the norms' biases stay 0; nothing else has one
            parameter.requires_grad_(bool(self.losses["fusion"]) and not name.endswith("bias"))
        self.ema_limit, self.ema_buffers = ema_limit, ema_buffers
        self.register_buffer("ema_step", torch.zeros((), dtype=torch.int64))

    @property
    def final(self) -> ReIDEncoder:
        """The network that is tested: the teacher, or the student where there is none."""
        return self.student if self.teacher is None else self.teacher

    def forward(
        self,
        global_view: Batch | None = None,
        top: Batch | None = None,
        bottom: Batch | None = None,
        mode: str = "loss",
        image: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Tensor] | Tensor:
        """``loss``: losses by name, of a batch of items per view. ``predict``: the teacher's descriptors of ``image``.

        Images are (B, 3, H, W), labels (B,); descriptors are those of :meth:`extract`, (B, D).
        """
        if is_prediction(mode):
            return self.extract(image)
        views = dict(zip(PARTS, (("global_view", global_view), ("top", top), ("bottom", bottom))))
        losses: dict[str, Tensor] = {}
        for part in self.parts:
            losses.update(self._view_losses(part, needed_batch(*views[part])))
        return losses

    def train(self, mode: bool = True) -> "CoreReID":
        """A teacher that takes the student's batch norm statistics runs on them."""
        super().train(mode)
        if self.teacher is not None and self.ema_buffers != "own":
            self.teacher.eval()
        return self

    def descriptor(self, image: Tensor) -> Tensor:
        """See :class:`ReIDModel`: (B, 3, H, W) -> the teacher's features of all P parts, concatenated, (B, P * C)."""
        return F.normalize(torch.cat(self.final(image).features, dim=1))

    def extract_fused(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> L2-normalised clustering features (B, C) of every part, in eval mode.

        Returns:
            (global, top, bottom); (global,) without local branches.
        """
        with evaluating(self):
            return tuple(F.normalize(each) for each in self._both_ways(self.fused, image))

    def fused(self, image: Tensor) -> tuple[Tensor, ...]:
        """Fused features (B, C) of every part, not normalised, in the module's present mode."""
        return self._fuse(self.student(image), image)

    def reset_classifier(self, num_classes: int, centroids: Tensor | np.ndarray | None = None) -> None:
        """New classes for student and teacher; see :meth:`~visionkit.reid.encoder.Classifier.reset`."""
        for net in (self.student, self.teacher):
            if net is not None:
                net.classifier.reset(num_classes, centroids)

    def use_classes(self, num_classes: int) -> None:
        """Say how many classes are in use, where a checkpoint brought the weights."""
        for net in (self.student, self.teacher):
            if net is not None:
                net.classifier.active = num_classes

    def update_teacher(self) -> None:
        """One step of the moving average; nothing to do without a teacher."""
        if self.teacher is None:
            return
        alpha = ema_alpha(int(self.ema_step), self.ema_limit)
        update_teacher(self.teacher, self.student, alpha, self.ema_buffers)
        self.ema_step += 1

    def load_source(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Start student and teacher from a checkpoint of :class:`SourceReID`, or from the teacher of another adaptation
        (its student where it has none), ours or released: copy what matches in name and shape.

        Returns:
            The checkpoint's entries that have no place here (its neck and classifier).

        Raises:
            VisionKitError: its backbone is another one.
        """
        state_dict = one_network(state_dict)
        fits = what_fits(self.student.state_dict(), state_dict)
        fits.pop("classifier.weight", None)
        self.student.load_state_dict(fits, strict=False)
        if self.teacher is not None:
            self.teacher.load_state_dict(self.student.state_dict())
        left = sorted(set(state_dict) - set(fits))
        print_log(f"started from {len(fits)} entries of the source checkpoint; not used: {', '.join(left)}", "current")
        return left

    def _view_losses(self, part: str, batch: Batch) -> dict[str, Tensor]:
        image, labels = batch["image"], batch["pid"]
        student = self.student(image)
        losses = {}
        if part == "global" and self.losses["id"]:
            losses["loss_id"] = self.losses["id"] * self._id_loss(student.logits, labels)
        name, index = "triplet" if part == "global" else f"triplet_{part}", self.parts.index(part)
        if weight := self.losses[name]:
            losses[f"loss_{name}"] = weight * softmax_triplet_loss(student.features[index], labels)
        # also without a loss on it, for its batch norms' statistics
        theta = self._fuse(student, image)[index]
        if weight := self.losses["fusion"] / len(self.parts):
            losses[f"loss_fusion_{part}"] = weight * softmax_triplet_loss(theta, labels)
        return losses

    def _fuse(self, student: Encoded, image: Tensor) -> tuple[Tensor, ...]:
        if self.teacher is None:
            teacher_map = student.feature_map.detach()
        else:
            with torch.no_grad():
                teacher_map = self.teacher(image).feature_map
        return self.fusion(student.feature_map, teacher_map)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside; the model's mode returns afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def with_defaults(losses: Mapping[str, float] | None, defaults: Mapping[str, float]) -> dict[str, float]:
    """Loss weights over their defaults. Raises VisionKitError for a loss or a weight that cannot be."""
    check_keys(losses or {}, defaults, "losses")
    check_numbers("losses", **(losses or {}))
    return {**defaults, **(losses or {})}


def is_prediction(mode: str) -> bool:
    """Whether to predict; otherwise to train. Raises VisionKitError for any other mode."""
    check_choice("model", ("loss", "predict"), mode=mode)
    return mode == "predict"


def needed_batch(name: str, batch: Batch | None) -> Batch:
    """Raises VisionKitError if a loader's batch is missing."""
    if batch is None:
        raise VisionKitError(f"train_dataloader: no loader is called {name!r}, which this model trains on; add it")
    return batch


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises VisionKitError for a label outside the classifier, which a GPU would only answer with a failed assert."""
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < num_classes):
        raise VisionKitError(
            f"label {int(labels.max())} is outside the classifier's {num_classes} classes; set num_classes to the "
            "number of identities, or call reset_classifier with the number of clusters"
        )
