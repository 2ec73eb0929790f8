"""A timm model with mixed images and smoothed labels."""

import timm
import torch
from mmengine.model import BaseModel
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torch.nn import functional as F

import visionkit.backbones  # noqa: F401  (registers its models with timm)
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Any classifier of timm, trained with Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

    Args:
        model: name of a timm model, ``"mavit_tiny"`` for instance.
        num_classes: number of classes.
        model_options: further options of ``timm.create_model``.
        mixup, cutmix: parameter of the Beta distribution from which the shares of the mixed images are drawn; 0
            switches it off. Each batch takes one of the two.
        smoothing: label smoothing, the share of a label that is spread over all classes.
        bf16: train in bfloat16.

    Raises:
        VisionKitError: timm knows no such model.
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        model_options: dict | None = None,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            raise VisionKitError(f"model={model!r}: timm knows no such model; timm.list_models() lists them")
        self.net = timm.create_model(model, num_classes=num_classes, **model_options or {})
        mixed = bool(mixup or cutmix)
        self.mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes) if mixed else None
        self.smoothing, self.bf16 = smoothing, bf16

    def forward(
        self, images: dict[str, Tensor] | None = None, mode: str = "loss", **batch: Tensor
    ) -> dict[str, Tensor] | Tensor:
        """``image`` (B, 3, H, W), ``label`` (B,) -> the loss or, with ``mode="predict"``, logits (B, classes)."""
        batch = batch if images is None else images
        image, label = batch["image"], batch["label"]
        if mode != "loss":
            return self.net(image)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            if self.mix is None or len(image) % 2:  # images are mixed in pairs
                return dict(loss=F.cross_entropy(self.net(image).float(), label, label_smoothing=self.smoothing))
            image, target = self.mix(image, label)
            return dict(loss=SoftTargetCrossEntropy()(self.net(image).float(), target))
