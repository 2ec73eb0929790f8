"""What NViST is trained by, beyond the distortion loss of [visionkit.ops.render]."""

import logging
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from visionkit.checks import check_choice
from visionkit.errors import VisionKitError

_BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al., CVPR 2018) on images in [0, 1]; off, with a warning, where its weights are not available.

    The distance is defined on [-1, 1]. The released NViST hands it images in [0, 1], in training and evaluation.

    Args:
        net: ``vgg`` or ``alex``.
        scaling: ``right`` rescales to [-1, 1]; ``released`` does not.
    """

    def __init__(self, net: str = "vgg", scaling: str = "right") -> None:
        super().__init__()
        check_choice("", _BACKBONES, lpips=net)
        check_choice("", ("right", "released"), lpips_scaling=scaling)
        self.scaling = scaling
        # A list hides the network from state_dict and from optimisers.
        self._network = [_load_network(net)]

    @property
    def available(self) -> bool:
        """Whether the weights were found."""
        return self._network[0] is not None

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) twice, in [0, 1] -> (B,) distances."""
        network = self._network[0].to(image.device)
        return network(image.float(), target.float(), normalize=self.scaling == "right").flatten()


def _load_network(net: str) -> nn.Module | None:
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONES[net]
    try:
        import lpips
    except ImportError:
        _warn("the package lpips is not installed (pip install 'visionkit[nvs]')")
        return None
    if not weights.is_file():
        url = f"https://download.pytorch.org/models/{_BACKBONES[net]}"
        _warn(f"{weights} is absent (get it from {url})")
        return None
    try:
        return lpips.LPIPS(net=net, verbose=False).eval().requires_grad_(False)
    except Exception as error:  # a damaged file of weights fails in many ways
        raise VisionKitError(f"{weights}: cannot be read as LPIPS's network; delete it and get it again") from error


def _warn(reason: str) -> None:
    print_log(f"LPIPS is off, as loss and as metric: {reason}", "current", logging.WARNING)
