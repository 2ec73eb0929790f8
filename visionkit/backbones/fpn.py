"""A backbone with a feature pyramid, as torchvision's detectors take one."""

from typing import Any

import timm
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN


class _NamedMaps(nn.Module):
    """A timm backbone whose maps come as a dictionary."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(i): each for i, each in enumerate(self.net(x))}


def backbone_with_fpn(name: str, out_channels: int = 256, pretrained: bool = False, **options: Any) -> BackboneWithFPN:  # noqa: ANN401
    """A ``torchvision`` ``BackboneWithFPN`` on one of timm's models with four maps at strides 4 to 32.

    ``FasterRCNN(backbone_with_fpn("mavit_tiny"), num_classes=91)`` is a whole detector. It gives five maps, of names
    ``"0"`` to ``"3"`` and ``"pool"``, at strides 4 to 64.

    Args:
        name: name of a timm model, those of visionkit included.
        out_channels: channels of every map of the pyramid.
        pretrained: load weights, as in ``timm.create_model``.
        **options: further options of the model.
    """
    net = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(0, 1, 2, 3), **options)
    pyramid = BackboneWithFPN(nn.Sequential(), {}, net.feature_info.channels(), out_channels)
    pyramid.body = _NamedMaps(net)  # torchvision's own body walks through children in order, which is not all we do
    return pyramid
