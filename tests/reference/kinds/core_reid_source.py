"""Kind ``core_reid_source``: the source-stage network's test descriptor, without the mirrored image."""

from reference.common import Checks, fill_state_dict, relative_error, tensor

from visionkit.backbones import ResNet
from visionkit.reid import SourceReID
from visionkit.reid.published import checkpoint_filter_fn


def run(case: dict) -> Checks:
    """Build from ``depth`` and ``num_classes``; the image is 256 x 128 where ``hw`` does not say otherwise.

    ResNet-18 and 34 were published with either last stride, and a pooled feature does not show which; the one that
    comes nearer counts.
    """
    strides = [case["last_stride"]] if "last_stride" in case else [1, 2] if case["depth"] < 50 else [1]
    digest = case["inference_feature"]
    image = tensor(case["input"], [digest["shape"][0], 3, *case.get("hw", (256, 128))])
    features = [build(case, stride).extract(image) for stride in strides]
    best = min(features, key=lambda feature: relative_error(feature, digest))
    yield "inference_feature", best, digest, case["tolerance"]


def build(case: dict, last_stride: int) -> SourceReID:
    """The network of the case's depth and classes, freshly filled."""
    model = SourceReID(ResNet(case["depth"], last_stride=last_stride), case["num_classes"], bmfn=False)
    model.load_state_dict(checkpoint_filter_fn(fill_state_dict(case["state_dict"])))
    return model
