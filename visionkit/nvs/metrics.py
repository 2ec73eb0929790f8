"""How close rendered views come to photographs: PSNR, SSIM, LPIPS."""

import math
from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.nvs.losses import PerceptualLoss
from visionkit.registry import METRICS

SSIM_WINDOW = 11
VIEWS_AT_ONCE = 8


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: (B, ...) twice, in [0, 1] -> (B,)."""
    return -10 * (image - target).square().flatten(1).mean(dim=1).log10()


def check_scored(size: tuple[int, int], long_side: int) -> None:
    """Raises VisionKitError if views are smaller than SSIM's window.

    Args:
        size: (height, width) that gives the shape of the views.
        long_side: long side of the views, in pixels.
    """
    short, long = min(size), max(size)
    if round(short * long_side / long) < SSIM_WINDOW:
        least = math.ceil(SSIM_WINDOW * long / short)
        raise VisionKitError(
            f"long_side={long_side} (--size): gives views too small to be scored, which takes {SSIM_WINDOW} pixels on"
            f" the short side; expected at least {least}"
        )


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), with its 11 x 11 Gaussian window of deviation 1.5.

    The mean is over all windows that lie wholly inside the image, and over colours.

    Args:
        image, target: (B, 3, H, W) in [0, 1], at least 11 pixels high and wide.

    Returns:
        (B,).
    """
    # imported here, for it takes a second
    similarity = require("kornia.metrics", "nvs").ssim(image, target, SSIM_WINDOW, padding="valid")
    return similarity.flatten(1).mean(dim=1)


@METRICS.register_module()
class ViewMetric(BaseMetric):
    """PSNR, SSIM and, where its weights are at hand, LPIPS of target views: means over views, then over scenes.

    The first view of a sample is the input view and does not count. The data set decides whether it comes again as a
    target (``include_input``, as the released evaluation has it).

    Args:
        lpips: ``vgg``, ``alex`` or None to leave it out.
        lpips_scaling: see [PerceptualLoss].
    """

    default_prefix = ""  # no prefix; mmengine would warn about None

    def __init__(self, lpips: str | None = "vgg", lpips_scaling: str = "right") -> None:
        super().__init__()
        network = PerceptualLoss(lpips, lpips_scaling) if lpips else None
        self.lpips = network if network is not None and network.available else None

    def process(self, data_batch: dict[str, Tensor], data_samples: Sequence[Tensor]) -> None:
        """Scores a batch of scenes: ``image`` (B, V, 3, H, W) against predictions (B, V, 3, H, W)."""
        for image, predicted in zip(data_batch["image"], data_samples):
            target, predicted = image[1:].to(predicted.device), predicted[1:]
            scores = dict(PSNR=psnr(predicted, target), SSIM=ssim(predicted, target))
            if self.lpips is not None:  # a few views at a time, for its network's maps are large
                pairs = zip(predicted.split(VIEWS_AT_ONCE), target.split(VIEWS_AT_ONCE))
                scores["LPIPS"] = torch.cat([self.lpips(*pair) for pair in pairs])
            self.results.append({name: float(values.mean()) for name, values in scores.items()})

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Means over scenes."""
        return {name: sum(row[name] for row in results) / len(results) for name in results[0]}
