"""Keys of the released CORE-ReID checkpoints, mapped to ours.

Released networks number their children: ``base.0`` and ``base.1`` are ResNet's stem, ``base.4`` to ``base.7`` its
stages, ``ca_upper`` and ``ca_low`` the ECABs (1x1 convolutions), ``adativeFC_*`` and ``BN_*`` the heads.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from visionkit.backbones import ResNet
from visionkit.errors import VisionKitError
from visionkit.reid.networks import CoreReID, SourceReID

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
# depth of a ResNet by the blocks of its stages, basic ones and bottlenecks
BASIC = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECK = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def released_network(state_dict: Mapping[str, Tensor]) -> SourceReID | CoreReID | None:
    """The network that a released state dict belongs to, with its weights; None if it is no such state dict.

    Depth and number of classes are read off names and shapes. ResNet-18 and 34 keep the last stride of 2, as in the
    code of version 2; the others have 1.

    Raises:
        VisionKitError: it begins like one, but is none.
    """
    state = {key.replace("module.", ""): value for key, value in state_dict.items()}
    prefix = next((prefix for prefix in ("model_ema.", "") if f"{prefix}base.0.weight" in state), None)
    if prefix is None or f"{prefix}classifier.weight" not in state:
        return None
    firsts = [rf"{re.escape(prefix)}base\.{i}\.\d+\.conv1\.weight" for i in (4, 5, 6, 7)]
    blocks = tuple(sum(bool(re.fullmatch(first, key)) for key in state) for first in firsts)
    is_deep = f"{prefix}base.4.0.conv3.weight" in state
    depth = (BOTTLENECK if is_deep else BASIC).get(blocks)
    if depth is None:
        raise VisionKitError(f"published checkpoint: no ResNet has stages of {blocks} blocks; is it another network's?")
    backbone, num_classes = ResNet(depth, last_stride=1 if is_deep else 2), len(state[f"{prefix}classifier.weight"])
    model = CoreReID(backbone, num_classes, preset="released") if prefix else SourceReID(backbone, num_classes)
    try:
        model.load_state_dict(checkpoint_filter_fn(state, model))
    except RuntimeError as error:
        raise VisionKitError("published checkpoint: entries are missing or of other shapes; is it damaged?") from error
    return model


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a released state dict into one for ``model.load_state_dict``.

    Args:
        state_dict: released keys, with or without DataParallel's ``module.``; a state dict with our keys is returned
            as it is.
        model: the :class:`SourceReID` or :class:`CoreReID` (``preset="released"``) that it is for.

    Raises:
        VisionKitError: a key that the released network of this kind does not have.
    """
    own = model.state_dict()
    if set(state_dict) <= set(own):
        return dict(state_dict)
    if not isinstance(model, SourceReID | CoreReID):
        raise VisionKitError(f"published checkpoint: expected a SourceReID or CoreReID, got {type(model).__name__}")
    rules = SOURCE if isinstance(model, SourceReID) else CORE
    state = {}
    for key, value in state_dict.items():
        key = key.replace("module.", "")
        if rules is CORE and UNUSED.match(key):
            continue
        ours = _translate(key, rules, type(model).__name__)
        # their MLPs are 1x1 convolutions, ours linear layers
        state[ours] = value.flatten(1) if ".mlp." in ours else value
    if "ema_step" in own:  # they keep no count
        state["ema_step"] = own["ema_step"]
    return state


def _translate(key: str, rules: list[tuple[str, str]], model: str) -> str:
    for theirs, ours in rules:
        if match := re.match(theirs, key):
            return ours + key[match.end() :]
    raise VisionKitError(f"published checkpoint: {key!r} is no key of a released {model}; is it another network's?")
