"""Keys of the released CORE-ReID checkpoints, mapped to ours, and what of a checkpoint another network can start from.

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


def one_network(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Of a checkpoint of student and teacher the teacher, else the student; another one as it is.

    Released checkpoints get our names first.
    """
    state_dict = checkpoint_filter_fn(state_dict)
    for part in ("teacher.", "student."):
        if found := {key.removeprefix(part): value for key, value in state_dict.items() if key.startswith(part)}:
            return found
    return state_dict


def what_fits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given entries that match our own in name and shape.

    Raises:
        VisionKitError: their backbone is another one.
    """
    check_backbone(own, given)
    return {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}


def check_backbone(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises VisionKitError unless both state dicts have the same ``backbone.*`` entries and shapes."""
    keys = [key for key in {**own, **given} if key.startswith("backbone.")]
    for key in keys:
        expected, found = (tuple(state[key].shape) if key in state else "nothing" for state in (own, given))
        if expected != found:
            raise VisionKitError(
                f"source checkpoint: of another architecture: expected {key} to be {expected}, found {found}; build "
                "the model with the backbone that the checkpoint was trained with"
            )


def _translate(key: str, rules: list[tuple[str, str]]) -> str:
    for theirs, ours in rules:
        if match := re.match(theirs, key):
            return ours + key[match.end() :]
    raise VisionKitError(f"published checkpoint: {key!r} is no key of the released networks; is it another network's?")
