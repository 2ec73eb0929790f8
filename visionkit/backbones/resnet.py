"""ResNet and IBN-a ResNet trunks for re-identification, and any timm model with ``features_only``.

Both give their last feature map (N, C, H, W) and tell C as ``num_features``. ResNet: He et al., arXiv 1512.03385;
IBN-a: Pan et al., arXiv 1807.09441 (the first norm of every block of layers 1-3 is half instance, half batch norm).
Last stride 1 (a map twice as tall and wide): Luo et al., arXiv 1903.07071.
"""

import difflib
import socket
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from visionkit.backbones.published import with_weights, without_weights
from visionkit.checks import check_choice
from visionkit.errors import VisionKitError
from visionkit.registry import MODELS

DEPTHS = (18, 34, 50, 101, 152)
IBN_RELEASE = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
IBN_FILES = {
    18: "resnet18_ibn_a-2f571257.pth",
    34: "resnet34_ibn_a-94bc1577.pth",
    50: "resnet50_ibn_a-d9d0bb7b.pth",
    101: "resnet101_ibn_a-59ea0ac6.pth",
}
TIMEOUT = 10.0  # seconds without an answer after which a download is given up


class InstanceBatchNorm(nn.Module):
    """Instance norm (affine) on the first half of the channels, batch norm on the rest (IBN-a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        first, second = x[:, : self.half], x[:, self.half :]
        return torch.cat([self.instance(first), self.batch(second)], dim=1)


@MODELS.register_module()
class ResNet(nn.Module):
    """torchvision's ResNet without its head; parameter names are torchvision's.

    Args:
        depth: 18, 34, 50, 101 or 152.
        ibn: ``"a"`` for IBN-a, False for plain batch norm.
        last_stride: stride of the last stage: 1 for maps of 1/16 of the image, 2 for 1/32.
        weights: None (train from scratch), ``"imagenet"`` (fetched; a warning and scratch if it cannot be), or a
            ``.pth``/``.safetensors`` file with torchvision's key names.

    Raises:
        VisionKitError: an unknown option, or a file that does not hold this architecture.
    """

    def __init__(
        self, depth: int = 50, ibn: bool | str = False, last_stride: int = 1, weights: str | Path | None = None
    ) -> None:
        super().__init__()
        check_choice("", DEPTHS, depth=depth)
        check_choice("", (False, "a"), ibn=ibn)
        check_choice("", (1, 2), last_stride=last_stride)
        self.depth, self.ibn = depth, ibn
        net = getattr(torchvision.models, f"resnet{depth}")()
        self.num_features: int = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if ibn == "a":
            for block in [*self.layer1, *self.layer2, *self.layer3]:
                block.bn1 = InstanceBatchNorm(block.bn1.num_features)
        if last_stride == 1:
            _remove_stride(self.layer4[0])
        if weights == "imagenet":
            self._load_imagenet()
        elif weights is not None:
            from visionkit.engine.checkpoints import read_weights

            self.load_weights(read_weights(weights), str(weights))

    @property
    def name(self) -> str:
        """Such as ``resnet50`` or ``resnet50_ibn_a``."""
        return f"resnet{self.depth}" + ("_ibn_a" if self.ibn else "")

    def forward(self, image: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> the last map (N, num_features, H/16, W/16) (H/32, W/32 with last stride 2)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def load_weights(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        """Load torchvision-named weights; the classifier ``fc.*`` is left out.

        Raises:
            VisionKitError: an entry is missing, left over or of another shape.
        """
        state = {_own_key(key): value for key, value in state_dict.items()}
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        own = self.state_dict()
        for key, value in own.items():
            if key.endswith("num_batches_tracked"):
                state.setdefault(key, value)
            found = tuple(getattr(state[key], "shape", ())) if key in state else "nothing"
            if found != tuple(value.shape):
                raise VisionKitError(
                    f"{source}: not the weights of a {self.name}: expected {key} of shape {tuple(value.shape)}, "
                    f"found {found}; give a file of this architecture"
                )
        if extra := sorted(set(state) - set(own)):
            raise VisionKitError(
                f"{source}: not the weights of a {self.name}: {extra[0]} and {len(extra) - 1} more entries have no "
                "place; give a file of this architecture"
            )
        self.load_state_dict(state)

    def _load_imagenet(self) -> None:
        try:
            state = _fetch_imagenet(self.depth, self.ibn)
        except Exception as error:  # no network, a full disk, a cut download, ...
            _warn_scratch(self.name, error)
            return
        self.load_weights(state, "imagenet")


@MODELS.register_module()
class TimmFeatures(nn.Module):
    """The last (or ``out_index``-th) feature map of any timm model that supports ``features_only``.

    Args:
        model_name: a timm name; visionkit's own families are registered there too.
        out_index: number of the feature map among the model's, from 0; negative ones count from the end.
        pretrained: fetch timm's weights; a warning and scratch if they cannot be. With
            ``pretrained_cfg_overlay=dict(file=...)`` they are read from that file.
        **kwargs: handed to ``timm.create_model``.

    Raises:
        VisionKitError: an unknown model, one without ``features_only``, or a file that is damaged or would run code.
    """

    def __init__(self, model_name: str, out_index: int = -1, pretrained: bool = False, **kwargs: object) -> None:
        super().__init__()
        if "checkpoint_path" in kwargs:  # old versions of timm run what such a file holds
            raise VisionKitError(
                "TimmFeatures: checkpoint_path is not read; give pretrained=True, pretrained_cfg_overlay=dict(file=...)"
            )
        if not timm.is_model(model_name):
            near = difflib.get_close_matches(model_name, timm.list_models(), n=3)
            raise VisionKitError(f"model_name={model_name!r}: not a timm model; nearest: {', '.join(near) or 'none'}")
        options = dict(kwargs, features_only=True, out_indices=(out_index,))
        try:
            self.body = timm.create_model(model_name, **options)
        except (RuntimeError, AttributeError, AssertionError, IndexError, NotImplementedError) as error:
            raise VisionKitError(
                f"model_name={model_name!r}: cannot be built with features_only and out_index={out_index} ({error}); "
                "choose another model or index"
            ) from error
        if pretrained:
            options = with_weights(model_name, True, options)
            try:
                with _hub_within_reach():
                    self.body = without_weights(timm.create_model(model_name, pretrained=True, **options))
            except Exception as error:  # each way of fetching fails in its own way
                _warn_scratch(model_name, error)
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")) in ("NHWC", "Format.NHWC")
        self.num_features: int = self.body.feature_info.channels()[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> a map (N, num_features, h, w)."""
        feature_map = self.body(image)[-1]
        return feature_map.permute(0, 3, 1, 2) if self.channels_last else feature_map


def _remove_stride(block: nn.Module) -> None:
    for conv in (block.conv1, block.conv2, block.downsample[0]):
        conv.stride = (1, 1)


def _own_key(key: str) -> str:
    """Published IBN checkpoints call the two halves IN and BN; DataParallel puts ``module.`` in front."""
    return key.removeprefix("module.").replace(".IN.", ".instance.").replace(".BN.", ".batch.")


def _warn_scratch(name: str, error: Exception) -> None:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    warnings.warn(f"{name}: pretrained weights could not be fetched ({reason}); training from scratch")


@contextmanager
def _hub_within_reach() -> Iterator[None]:
    """Where the model hub does not answer, its client looks into its cache alone, not for minutes at the network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
    return True


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch's downloader sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fetch_imagenet(depth: int, ibn: bool | str) -> dict[str, Tensor]:
    with _socket_timeout(TIMEOUT):
        if ibn == "a":
            if depth not in IBN_FILES:
                raise LookupError(f"none are published for IBN-a of depth {depth}")
            return torch.hub.load_state_dict_from_url(
                IBN_RELEASE + IBN_FILES[depth], map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        weights = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
        return weights.get_state_dict(progress=False, check_hash=True)
