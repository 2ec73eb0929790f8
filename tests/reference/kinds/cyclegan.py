"""Kind ``cyclegan``: CycleGAN's generator and discriminator in eval mode, and the least-squares loss.

Sizes come from the published keys and shapes. A network whose keys hold running statistics uses them in eval mode.
"""

import re

import torch
from reference.common import Checks, fill_state_dict, tensor
from torch import nn

from visionkit.errors import VisionKitError
from visionkit.reid.camstyle.losses import lsgan_loss
from visionkit.reid.camstyle.networks import PatchDiscriminator, ResnetGenerator, checkpoint_filter_fn

SCALARS = {"real": True, "fake": False}


def run(case: dict) -> Checks:
    """Every network's output and number of parameters, and the loss values."""
    tolerance = case["tolerance"]
    for name, item in case["cases"].items():
        item_tolerance = item.get("tolerance", tolerance)
        if "state_dict" not in item:
            scores = tensor(item["input"], item["shape"])
            for key in SCALARS.keys() & item.keys():
                yield f"{name} {key}", lsgan_loss(scores, SCALARS[key]), item[key], item_tolerance
            continue
        network = build(item["state_dict"]).eval()
        network.load_state_dict(checkpoint_filter_fn(fill_state_dict(item["state_dict"]), network))
        with torch.no_grad():
            yield f"{name} output", network(network_input(item["input"])), item["output"], item_tolerance
        if "params" in item:
            yield f"{name} params", sum(p.numel() for p in network.parameters()), item["params"], 0.0


def build(shapes: dict[str, list[int]]) -> nn.Module:
    """The network that a published state dict belongs to: a generator starts with a 7x7 convolution."""
    keys = sorted(shapes, key=lambda key: [int(number) for number in re.findall(r"\d+", key)])
    convolutions = [shapes[key] for key in keys if key.endswith(".weight") and len(shapes[key]) == 4]
    if len(convolutions) < 3:
        raise VisionKitError(
            f"cyclegan: the case's state_dict holds {len(convolutions)} convolutions, expected 3 or more"
        )
    (width, channels, _, kernel), last = convolutions[0], convolutions[-1]
    running_stats = any(key.endswith(".running_mean") for key in shapes)
    if kernel == 7:  # stem, two down, two in each block, two up, head
        blocks = (len(convolutions) - 6) // 2
        return ResnetGenerator(channels, last[0], width, blocks, running_stats=running_stats)
    return PatchDiscriminator(channels, width, len(convolutions) - 2, running_stats)


def network_input(rule: str) -> torch.Tensor:
    """The input that ``tanh of tensor("name",(1,3,256,256))`` describes."""
    match = re.search(r"tensor\(\s*[\"'](?P<name>.+?)[\"']\s*,\s*[(\[](?P<shape>[\d,\s]+)[)\]]", rule)
    if match is None:
        raise VisionKitError(f'cyclegan: input {rule!r} is not understood; expected tanh of tensor("name",(1,3,H,W))')
    x = tensor(match["name"], [int(size) for size in match["shape"].split(",") if size.strip()])
    return torch.tanh(x) if "tanh" in rule else x
