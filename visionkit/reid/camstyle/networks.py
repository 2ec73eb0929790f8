"""CycleGAN's two networks: a ResNet generator and a PatchGAN discriminator.

Paper: "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", Zhu et al., ICCV 2017,
section 7.2 (appendix). The generator is of Johnson et al., ECCV 2016; the discriminator of Isola et al., CVPR 2017.
"""

import re

import torch
from torch import Tensor, nn

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError


def _instance_norm(channels: int, running_stats: bool) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=False, track_running_stats=running_stats)


class ResidualBlock(nn.Module):
    """x + norm(conv(dropout(relu(norm(conv(x)))))), 3x3 convolutions with reflection padding."""

    def __init__(self, channels: int, dropout: float, running_stats: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm1 = _instance_norm(channels, running_stats)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.norm2 = _instance_norm(channels, running_stats)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        y = self.dropout(torch.relu(self.norm1(self.conv1(x))))
        return x + self.norm2(self.conv2(y))


class ResnetGenerator(nn.Module):
    """Translates an image: 7x7 stem, two halvings, residual blocks, two doublings, 7x7 head and tanh.

    Args:
        in_channels: Channels of the input image.
        out_channels: Channels of the output image.
        ngf: Width of the first layer; the residual blocks are four times as wide.
        num_blocks: Number of residual blocks.
        dropout: Probability of the dropout inside each residual block.
        running_stats: Whether the normalisation keeps running statistics and uses them in eval mode, as the released
            camera-style weights do. Without, an image is normalised by its own statistics in both modes.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        num_blocks: int = 9,
        dropout: float = 0.5,
        running_stats: bool = False,
    ) -> None:
        super().__init__()
        check_counts("ResnetGenerator", 1, in_channels=in_channels, out_channels=out_channels, ngf=ngf)
        check_counts("ResnetGenerator", 0, num_blocks=num_blocks)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, ngf, 7, padding=3, padding_mode="reflect"),
            _instance_norm(ngf, running_stats),
            nn.ReLU(inplace=True),
        )
        self.down = nn.Sequential()
        for width in (ngf, 2 * ngf):
            self.down.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
            self.down.append(_instance_norm(2 * width, running_stats))
            self.down.append(nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(*(ResidualBlock(4 * ngf, dropout, running_stats) for _ in range(num_blocks)))
        self.up = nn.Sequential()
        for width in (4 * ngf, 2 * ngf):
            self.up.append(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
            self.up.append(_instance_norm(width // 2, running_stats))
            self.up.append(nn.ReLU(inplace=True))
        self.head = nn.Conv2d(ngf, out_channels, 7, padding=3, padding_mode="reflect")
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_channels, H, W) in [-1, 1] to (B, out_channels, H, W) in [-1, 1].

        H and W must be multiples of 4, or the output is up to 3 pixels larger than the input.
        """
        return torch.tanh(self.head(self.up(self.blocks(self.down(self.stem(x))))))


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image as real (towards 1) or translated (towards 0).

    Args:
        in_channels: Channels of the image.
        ndf: Width of the first layer; each further layer doubles it, up to eight times ``ndf``.
        num_layers: Number of layers with stride 2. With 3 a score sees 70x70 pixels, with 2 34x34, with 1 16x16.
        running_stats: Whether the normalisation keeps running statistics, as in `ResnetGenerator`.
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, num_layers: int = 3, running_stats: bool = False) -> None:
        super().__init__()
        check_counts("PatchDiscriminator", 1, in_channels=in_channels, ndf=ndf, num_layers=num_layers)
        # The first layer has no normalisation; the last of the middle layers keeps the resolution.
        self.layers = nn.Sequential(nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        width = ndf
        for layer in range(1, num_layers + 1):
            next_width = ndf * min(2**layer, 8)
            self.layers.append(nn.Conv2d(width, next_width, 4, stride=2 if layer < num_layers else 1, padding=1))
            self.layers.append(_instance_norm(next_width, running_stats))
            self.layers.append(nn.LeakyReLU(0.2))
            width = next_width
        self.layers.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        _init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_channels, H, W) to scores (B, 1, h, w): (30, 30) for 256x256 and three layers."""
        return self.layers(x)


def _init_weights(network: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0 (section 7.1 of the paper)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Maps published weights of a generator or discriminator to the keys of ours.

    Published keys are those of one long ``nn.Sequential`` (``model.10.conv_block.6.weight``), whose numbers shift with
    the number of blocks and with the dropout. Both sides list their layers in order of execution, so the i-th
    convolution belongs to the i-th convolution and the i-th normalisation to the i-th normalisation. Running
    statistics are left out where ``model`` was built without them.

    Args:
        state_dict: The published weights; keys that are already ours are passed through.
        model: A `ResnetGenerator` or `PatchDiscriminator` of the same size.

    Raises:
        VisionKitError: The checkpoint has another number of layers, or lacks the running statistics the model needs.
    """
    ours = model.state_dict()
    if set(state_dict) == set(ours):
        return dict(state_dict)
    published = {re.sub(r"^module\.", "", key): value for key, value in state_dict.items()}
    mapped = {}
    for suffix in ("weight", "running_mean"):
        source, target = _layers_with(published, suffix), _layers_with(ours, suffix)
        if suffix == "running_mean" and not target:
            continue
        if len(source) != len(target):
            raise VisionKitError(
                f"checkpoint: {len(source)} layers with a {suffix!r}, the {type(model).__name__} has {len(target)}; "
                "build it with the checkpoint's num_blocks, num_layers and running_stats"
            )
        for old, new in zip(source, target):
            tensors = {key[len(old) :]: value for key, value in published.items() if key.startswith(old)}
            mapped.update({new + leaf: value for leaf, value in tensors.items() if new + leaf in ours})
    return mapped


def _layers_with(state_dict: dict[str, Tensor], suffix: str) -> list[str]:
    """Prefixes (with the final dot) of the layers that hold a ``suffix`` tensor, in order of execution."""
    layers = [key[: -len(suffix)] for key in state_dict if key.endswith(f".{suffix}")]
    return layers if any(key.startswith("stem.") for key in layers) else sorted(layers, key=_natural_order)


def _natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Sorts model.2 before model.10, whatever order the checkpoint lists them in."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]
