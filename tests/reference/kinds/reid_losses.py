"""Kind ``reid_losses``: values and gradients of the losses; names such as ``soft_triplet_0.3`` carry the parameter."""

import re
from functools import partial

import torch
from reference.common import Checks, tensor
from torch.nn.functional import cross_entropy

from visionkit.errors import VisionKitError
from visionkit.reid.losses import hard_triplet_loss, softmax_triplet_loss

LOSSES = {
    "soft_triplet": ("emb", lambda x, y, p: softmax_triplet_loss(x, y, margin=p)),
    "triplet": ("emb", lambda x, y, p: hard_triplet_loss(x, y, margin=p)),
    "ce_label_smooth": ("logits", lambda x, y, p: cross_entropy(x, y, label_smoothing=p)),
}
FIELDS = {"name", "shape", "labels", "num_classes"}


def run(case: dict) -> Checks:
    """Every loss named in every sub-case."""
    for item in case["cases"]:
        inputs = dict(
            emb=partial(tensor, item["name"] + ".emb", item["shape"]),
            logits=partial(tensor, item["name"] + ".logits", [len(item["labels"]), item["num_classes"]]),
        )
        labels = torch.tensor(item["labels"])
        for key in (key for key in item if key not in FIELDS):
            expected = item[key]
            source, loss = _loss_of(key)
            x = inputs[source]().double().requires_grad_()  # float64: the digest alone rounds
            value = loss(x, labels)
            value.backward()
            yield f"{item['name']} {key} value", value, expected["value"], case["tolerance"]
            yield f"{item['name']} {key} grad", x.grad, expected["grad"], case["tolerance"]


def _loss_of(key: str):  # noqa: ANN202
    match = re.fullmatch(r"(\w+?)_([0-9.]+)", key)
    if not match or match[1] not in LOSSES:
        raise VisionKitError(f"unknown loss {key!r}; expected one of {', '.join(LOSSES)} and a number")
    source, loss = LOSSES[match[1]]
    return source, lambda x, y: loss(x, y, float(match[2]))
