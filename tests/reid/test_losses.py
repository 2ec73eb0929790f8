import math

import pytest
import torch

from visionkit.reid.losses import batch_hard, hard_triplet_loss, softmax_triplet_loss

LABELS = [0, 0, 0, 1, 1, 2, 2, 3]


@pytest.fixture
def features():
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def hardest(features, labels):
    """One anchor at a time, in plain Python."""
    rows = features.tolist()
    for i, label in enumerate(labels):
        to = [max(math.dist(rows[i], row), 1e-6) for row in rows]
        positive = max(d for d, other in zip(to, labels) if other == label)
        negative = min(d for d, other in zip(to, labels) if other != label)
        yield positive, negative


def test_batch_hard_against_a_loop(features):
    positive, negative = batch_hard(features, torch.tensor(LABELS))
    expected = torch.tensor(list(hardest(features, LABELS)), dtype=torch.float64)
    torch.testing.assert_close(torch.stack([positive, negative], 1), expected)
    assert positive[7] == 1e-6  # an only image is its own positive


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
def test_softmax_triplet_formula(features, margin):
    total = 0.0
    for positive, negative in hardest(features, LABELS):
        share = math.exp(positive) / (math.exp(positive) + math.exp(negative))
        total -= margin * math.log(share) + (1 - margin) * math.log(1 - share)
    actual = softmax_triplet_loss(features, torch.tensor(LABELS), margin)
    assert actual.item() == pytest.approx(total / 8, rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_hard_triplet_formula(features, margin):
    expected = sum(max(0.0, p - n + margin) for p, n in hardest(features, LABELS)) / 8
    assert hard_triplet_loss(features, torch.tensor(LABELS), margin).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [softmax_triplet_loss, hard_triplet_loss])
def test_gradients(features, loss):
    labels = torch.tensor(LABELS[:7])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), features[:7].requires_grad_())


@pytest.mark.parametrize("loss", [softmax_triplet_loss, hard_triplet_loss])
def test_one_identity_or_equal_features_stay_finite(loss):
    x = torch.ones(4, 3, requires_grad=True)
    loss(x, torch.zeros(4, dtype=torch.int64)).backward()
    assert (x.grad == 0).all()
    loss(x, torch.tensor([0, 0, 1, 1])).backward()
    assert x.grad.isfinite().all()


def test_half_precision_features_are_compared_in_float32():
    x = torch.randn(6, 512, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert softmax_triplet_loss(x, torch.tensor([0, 0, 1, 1, 2, 2])).dtype == torch.float32
