"""The smallest things that the networks can be tried with."""

import torch
from torch import nn

from visionkit.registry import MODELS


@MODELS.register_module(force=True)
class TinyBackbone(nn.Module):
    """3 channels to ``channels`` at a quarter of the size; non-negative, as ResNet's maps are."""

    def __init__(self, channels=16, as_tuple=False):
        super().__init__()
        self.num_features = channels
        self.as_tuple = as_tuple
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, image):
        x = self.norm(self.conv(image)).relu()
        return (image, x) if self.as_tuple else x


TINY = dict(type="visionkit.TinyBackbone")


def batch(seed=0, identities=4, each=2, hw=(16, 8)):
    r = torch.Generator().manual_seed(seed)
    n = identities * each
    return dict(
        image=torch.randn(n, 3, *hw, generator=r),
        pid=torch.arange(identities).repeat_interleave(each),
        camid=torch.zeros(n, dtype=torch.int64),
        index=torch.arange(n),
        path=[f"{i}.jpg" for i in range(n)],
    )


def views(seed=0):
    return dict(global_view=batch(seed), top=batch(seed + 1), bottom=batch(seed + 2))
