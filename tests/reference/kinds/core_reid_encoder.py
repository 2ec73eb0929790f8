"""Kind ``core_reid_encoder``: student, teacher and fusion, in eval mode and in train mode."""

import torch
from reference.common import Checks, fill_state_dict, tensor

from visionkit.backbones import ResNet
from visionkit.reid import CoreReID
from visionkit.reid.networks import evaluating
from visionkit.reid.published import checkpoint_filter_fn

PARTS = ("global", "top", "bottom")


def build(case: dict) -> CoreReID:
    """The released network of the case's depth and classes, freshly filled."""
    height = case["student"]["feature_map"]["shape"][2]
    last_stride = 1 if height * 16 >= case["hw"][0] else 2
    model = CoreReID(ResNet(case["depth"], last_stride=last_stride), case["num_classes"], preset="released")
    model.load_state_dict(checkpoint_filter_fn(fill_state_dict(case["state_dict"])))
    return model


def run(case: dict) -> Checks:
    """Everything in eval mode, then ``train_mode`` where the case has it."""
    yield from eval_mode(build(case), case)
    if case.get("train_mode"):
        yield from train_mode(build(case), case["train_mode"], case["hw"])


def eval_mode(model: CoreReID, case: dict) -> Checks:
    """Student's features, test descriptor and clustering features, without and with the mirrored image."""
    tolerance, student = case["tolerance"], case["student"]
    image = tensor(case["input"], [student["feature_map"]["shape"][0], 3, *case["hw"]])
    with evaluating(model):
        encoded = model.student(image)
        psi_top, psi_bottom = model.fusion.channel_weights(encoded.feature_map)
        fused = model.fusion(encoded.feature_map, model.teacher(image).feature_map)
    for name, value in zip(("global_feature", "upper", "lower"), encoded.features):
        yield f"student.{name}", value, student[name], tolerance
    yield "student.logits", encoded.logits, student["logits"], tolerance
    yield "student.channel_upper", psi_top[:, :, None, None], student["channel_upper"], tolerance
    yield "student.channel_lower", psi_bottom[:, :, None, None], student["channel_lower"], tolerance
    yield "student.feature_map", encoded.feature_map, student["feature_map"], tolerance
    model.bmfn = False
    yield "inference_feature", model.extract(image), case["inference_feature"], tolerance
    for part, value, digest in zip(PARTS, fused, case["fused"]):
        yield f"fused.{part}", value, digest, tolerance
    model.bmfn = True
    yield "bmfn_inference", model.extract(image), case["bmfn_inference"], tolerance
    for part, value, digest in zip(PARTS, model.extract_fused(image), case["bmfn_fused"]):
        yield f"bmfn_fused.{part}", value, digest, tolerance


def train_mode(model: CoreReID, case: dict, hw: list[int]) -> Checks:
    """Batch statistics everywhere, in float64: in float32 they stray."""
    model = model.double().train()
    image = tensor(case["input"], [case["batch"], 3, *hw]).double()
    with torch.no_grad():
        student, teacher = model.student(image), model.teacher(image)
        fused = model.fusion(student.feature_map, teacher.feature_map)
    for part, value, digest in zip(PARTS, student.features, case["features"]):
        yield f"train_mode.features.{part}", value, digest, case["tolerance"]
    yield "train_mode.logits", student.logits, case["logits"], case["tolerance"]
    yield "train_mode.teacher_logits", teacher.logits, case["teacher_logits"], case["tolerance"]
    for part, value, digest in zip(PARTS, fused, case["fused"]):
        yield f"train_mode.fused.{part}", value, digest, case["tolerance"]
