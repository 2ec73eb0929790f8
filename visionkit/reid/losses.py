"""Losses of re-identification: batch-hard triplets.

A triplet's hardest positive is the farthest image of the anchor's identity in the batch, its hardest negative the
nearest image of another one; features are not normalised. Hermans et al., arXiv 1703.07737; the softmax form: Ge et
al. (MMT), arXiv 2001.01526.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances of each anchor to its hardest positive and hardest negative.

    Args:
        features: (B, D).
        labels: (B,) integers.

    Returns:
        Two tensors (A,), A <= B: an anchor without any negative in the batch has no triplet and is left out. An
        identity's only image is its own positive.
    """
    features = features if features.dtype == torch.float64 else features.float()
    # the direct form, for x^2 + y^2 - 2xy cancels between near features; 1e-6 keeps the root away from 0
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
    same = labels[:, None] == labels[None, :]
    positive = distance.masked_fill(~same, -torch.inf).max(dim=1).values
    negative = distance.masked_fill(same, torch.inf).min(dim=1).values
    complete = ~same.all(dim=1)
    return positive[complete], negative[complete]


def softmax_triplet_loss(features: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """Cross-entropy between softmax(d_ap, d_an) and the target (margin, 1 - margin), mean over the anchors.

    With margin 0 it is mean softplus(d_ap - d_an). (B, D) and (B,) -> a scalar; 0 if there is no triplet.
    """
    positive, negative = batch_hard(features, labels)
    gap = positive - negative
    return _mean(F.softplus(gap) - margin * gap, features)


def hard_triplet_loss(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """mean max(0, d_ap - d_an + margin). (B, D) and (B,) -> a scalar; 0 if there is no triplet."""
    positive, negative = batch_hard(features, labels)
    return _mean(F.relu(positive - negative + margin), features)


def _mean(values: Tensor, features: Tensor) -> Tensor:
    """The mean, and for no values a zero that still hangs on the features' graph."""
    return values.mean() if values.numel() else 0.0 * features.sum()
