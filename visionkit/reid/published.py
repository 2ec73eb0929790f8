"""Keys of the released CORE-ReID checkpoints, mapped to ours.

Released networks number their children: ``base.0`` and ``base.1`` are ResNet's stem, ``base.4`` to ``base.7`` its
stages, ``ca_upper`` and ``ca_low`` the ECABs (1x1 convolutions), ``adativeFC_*`` and ``BN_*`` the heads.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from visionkit.errors import VisionKitError

BACKBONE = [
    (r"base\.0\.", r"backbone.conv1."),
    (r"base\.1\.", r"backbone.bn1."),
    *[(rf"base\.{i + 3}\.", rf"backbone.layer{i}.") for i in (1, 2, 3, 4)],
]
SOURCE = [*BACKBONE, (r"feat_bn\.", r"bn."), (r"classifier\.", r"classifier.")]
ENCODER = [
    *BACKBONE,
    (r"BN_g\.", r"bn_global."),
    (r"BN_u\.", r"local_top.bn."),
    (r"BN_l\.", r"local_bottom.bn."),
    (r"adativeFC_upper\.", r"local_top.fc."),
    (r"adativeFC_low\.", r"local_bottom.fc."),
    (r"classifier\.", r"classifier."),
]
CORE = [
    *[(rf"model\.{theirs}", rf"student.{ours}") for theirs, ours in ENCODER],
    *[(rf"model_ema\.{theirs}", rf"teacher.{ours}") for theirs, ours in ENCODER],
    (r"model\.ca_upper\.se\.", r"fusion.ecab_top.mlp."),
    (r"model\.ca_low\.se\.", r"fusion.ecab_bottom.mlp."),
    (r"fuse_net\.bn_1\.", r"fusion.bn_global."),
    (r"fuse_net\.bn_2\.", r"fusion.bn_top."),
    (r"fuse_net\.bn_3\.", r"fusion.bn_bottom."),
]
# never used in a forward: a spatial attention, stage 1's neck, and the teacher's ECABs (only the student's weigh)
UNUSED = re.compile(r"(model|model_ema)\.(sa_upper|sa_low|feat_bn)\.|model_ema\.(ca_upper|ca_low)\.")


def released_stage(state_dict: Mapping[str, Tensor]) -> str | None:
    """``source`` or ``target``, the stage whose released network has such keys; None if neither has."""
    keys = {key.replace("module.", "") for key in state_dict}
    if {"model_ema.base.0.weight", "model_ema.classifier.weight"} <= keys:
        return "target"
    return "source" if {"base.0.weight", "classifier.weight"} <= keys else None


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Give a released state dict the names of :class:`SourceReID` or :class:`CoreReID` (``preset="released"``).

    Args:
        state_dict: released keys, with or without DataParallel's ``module.``; another one is returned as it is.

    Raises:
        VisionKitError: a key that the released network of this stage does not have.
    """
    stage = released_stage(state_dict)
    if stage is None:
        return state_dict
    state = {}
    for key, value in state_dict.items():
        key = key.replace("module.", "")
        if stage == "target" and UNUSED.match(key):
            continue
        ours = _translate(key, SOURCE if stage == "source" else CORE)
        # their MLPs are 1x1 convolutions, ours linear layers
        state[ours] = value.flatten(1) if ".mlp." in ours else value
    if stage == "target":
        state["ema_step"] = torch.zeros((), dtype=torch.int64)  # they keep no count
    return state


def _translate(key: str, rules: list[tuple[str, str]]) -> str:
    for theirs, ours in rules:
        if match := re.match(theirs, key):
            return ours + key[match.end() :]
    raise VisionKitError(f"published checkpoint: {key!r} is no key of the released networks; is it another network's?")
