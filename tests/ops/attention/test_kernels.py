"""Softmax, linear, sigmoid, softplus, norm, diag and gaam against N x N matrices."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from ops.attention.explicit import elu1, masked_softmax, qkv, visible
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.attention import _masks, attend, mechanism
from visionkit.ops.attention.gaam import gaussian_weights
from visionkit.ops.attention.gaam import parameters as gaam_parameters
from visionkit.ops.attention.softplus import softplus_attention, softplus_weights

ALL = ["full", "causal", "window", "block"]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(_masks, "ROWS", 10)


def both(name, mask, **options):
    q, k, v = qkv(dv=5)
    return q, k, v, visible(37, mask, 7), attend(name, q, k, v, mask=mask, window=7, **options)


@pytest.mark.parametrize("mask", ALL)
def test_softmax(mask):
    q, k, v, seen, y = both("softmax", mask)
    torch.testing.assert_close(y, masked_softmax(q @ k.mT / math.sqrt(8), seen) @ v)


@pytest.mark.parametrize("mask", ALL)
def test_linear(mask):
    q, k, v, seen, y = both("linear", mask)
    weights = (elu1(q) @ elu1(k).mT) * seen
    torch.testing.assert_close(y, weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v)


@pytest.mark.parametrize("mask", ALL)
@pytest.mark.parametrize("output", ["sum", "rms", "none"])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp", "relu2", "none"])
def test_linear_of_every_feature_map_and_output(feature_map, output, mask):
    q, k, v = qkv(dv=5)
    maps = dict(elu=elu1, relu=lambda x: x.clamp(min=0), exp=torch.exp, none=lambda x: x)
    phi = maps.get(feature_map, lambda x: x.clamp(min=0) ** 2)
    seen = visible(37, mask, 7)
    weights = (phi(q) @ phi(k).mT) * seen
    expected = dict(
        sum=lambda: weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v,
        rms=lambda: F.rms_norm(weights @ v, (5,), eps=0),
        none=lambda: weights @ v / seen.sum(-1, keepdim=True),
    )
    y = attend("linear", q, k, v, mask=mask, window=7, feature_map=feature_map, output=output)
    torch.testing.assert_close(y, expected[output]().nan_to_num(0))  # relu may leave a row of zeros


@pytest.mark.parametrize("options", [dict(feature_map="gelu"), dict(output="mala")])
def test_linear_tells_of_unknown_forms(options):
    (name, value), q = *options.items(), torch.zeros(1, 1, 2, 4)
    with pytest.raises(VisionKitError, match=f"^{name}='{value}': expected one of "):
        attend("linear", q, q, q, **options)


@pytest.mark.parametrize("mask", ALL)
@pytest.mark.parametrize("name", ["linear", "norm"])
def test_linear_sums_in_single_precision_under_autocast(name, mask):
    q, k, v = (x.float() for x in qkv())
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(name, q, k, v, mask=mask, window=7)
    torch.testing.assert_close(y, attend(name, q, k, v, mask=mask, window=7))


@pytest.mark.parametrize("output", ["sum", "rms", "none"])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp", "relu2", "none"])
def test_gradients_of_linear(feature_map, output):
    function = partial(attend, "linear", feature_map=feature_map, output=output)
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in qkv(n=5, d=4, heads=1, batch=1)])


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_sigmoid(mask):
    q, k, v, seen, y = both("sigmoid", mask)
    n = 15 if mask == "window" else 37
    weights = torch.sigmoid(q @ k.mT / math.sqrt(8) - math.log(n)) * seen
    torch.testing.assert_close(y, weights @ v)


@pytest.mark.parametrize("n", [10, 1000])
def test_sigmoid_rows_sum_to_about_one_at_the_start(n):
    q, k, _ = qkv(n=n)
    ones = torch.ones_like(k[..., :1])
    torch.testing.assert_close(attend("sigmoid", 0 * q, k, ones), ones * n / (n + 1))
    torch.testing.assert_close(attend("sigmoid", 1e-3 * q, k, ones), ones * n / (n + 1), atol=0.01, rtol=0)


def explicit_softplus(q, k, seen, power=None, causal=False):
    n = seen.sum(-1, keepdim=True)
    cosine = torch.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    weights = torch.log1p((math.log(8) * n.log() * cosine).exp()) * seen
    weights = weights / weights.sum(-1, keepdim=True)
    if power:
        offset = (torch.arange(q.shape[-2])[:, None] >= 3).double() if causal else 1
        weights = (weights * n - offset).clamp(min=0) ** power * seen
        weights = weights / weights.sum(-1, keepdim=True)
    return weights


@pytest.mark.parametrize("power", [None, 15])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_softplus(mask, power):
    q, k, v, seen, y = both("softplus", mask, power=power)
    torch.testing.assert_close(y, explicit_softplus(q, k, seen, power, mask == "causal") @ v)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_softplus_drops_weights_below_the_average_from_the_fourth_row_whatever_the_window(window):
    """A window of 2 shows a causal row three keys, as many as the first three rows see."""
    q, k, v = qkv()
    seen = visible(37, "causal") & visible(37, "window", window)
    y = softplus_attention(q, k, v, causal=True, window=window, power=15)
    torch.testing.assert_close(y, explicit_softplus(q, k, seen, 15, causal=True) @ v)


def test_softplus_rows_of_nearly_equal_keys_sum_to_one():
    """The 15th power of what a weight exceeds the average by vanished beside what was added to the sum."""
    q, k, _ = qkv(d=64, dtype=torch.float32)
    for alike in (k, 0.05 * k + 1, 0.001 * k + 1, 0 * k + 1):
        rows = softplus_weights(q, alike, power=15).sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


def test_softplus_rows_of_equal_keys_are_even():
    q, k, _ = qkv(dtype=torch.float32)
    weights = softplus_weights(q, k[..., :1, :].expand_as(k), power=15)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 37))


def test_softplus_rows_that_all_keys_oppose_sum_to_one():
    k = torch.ones(1, 1, 4096, 64)
    rows = softplus_weights(-k[..., :1, :], k).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def entropy(weights):
    return -torch.special.xlogy(weights, weights).sum(-1).mean().item()


def growth(weights):
    return [entropy(weights(4 * n)) - entropy(weights(n)) for n in (64, 256, 1024)]


def test_softplus_length_scaling_slows_the_growth_of_entropy():
    """Of random keys; uniform weights grow by log 4 when tokens do by 4. With re-weighting it is less than half."""

    def keys(n):
        q, k, _ = qkv(n=n, d=64, heads=1, batch=1)
        return q[:, :, :64], k

    def unscaled(n):
        q, k = keys(n)
        cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
        weights = torch.nn.functional.softplus(math.log(64) * cosine)
        return weights / weights.sum(-1, keepdim=True)

    spread = growth(unscaled)
    scaled = growth(lambda n: softplus_weights(*keys(n)))
    sharp = growth(lambda n: softplus_weights(*keys(n), power=15))
    assert all(step == pytest.approx(math.log(4), abs=0.01) for step in spread)
    assert all(step < math.log(4) - 0.05 for step in scaled)
    assert all(step < math.log(4) / 2 for step in sharp)


EXPLICIT = dict(
    softmax=lambda q, k, seen, n: masked_softmax(q @ k.mT / math.sqrt(8), seen),
    linear=lambda q, k, seen, n: F.normalize((elu1(q) @ elu1(k).mT) * seen, 1, -1),
    sigmoid=lambda q, k, seen, n: torch.sigmoid(q @ k.mT / math.sqrt(8) - math.log(n)) * seen,
    softplus=lambda q, k, seen, n: explicit_softplus(q, k, seen),
)


@pytest.mark.parametrize("queries, keys", [(37, 9), (9, 37)])
@pytest.mark.parametrize("name, causal, window", [*product(EXPLICIT, (False, True), (1, 3)), ("sigmoid", True, None)])
def test_other_numbers_of_queries_than_of_keys(name, causal, window, queries, keys):
    """More queries saw no key farther than there are keys; those that a window shows none got NaN or an error."""
    q, k, v = (x[..., :n, :].requires_grad_() for x, n in zip(qkv(), (queries, keys, keys)))
    gap = torch.arange(queries)[:, None] - torch.arange(keys)
    seen = (gap.abs() <= (37 if window is None else window)) & (gap >= (0 if causal else -37))
    weights = EXPLICIT[name](q, k, seen, keys if window is None else min(keys, 2 * window + 1))
    y = mechanism(name).function()(q, k, v, causal=causal, window=window)
    torch.testing.assert_close(y, weights.nan_to_num(0) @ v, atol=1e-5, rtol=1e-5)  # linear adds 1e-6 where it divides
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), [q, k, v]))


@pytest.mark.parametrize("mask", ALL)
def test_norm(mask):
    q, k, v, seen, y = both("norm", mask)
    explicit = (elu1(q) @ elu1(k).mT * seen) @ v
    torch.testing.assert_close(y, explicit * math.sqrt(5) / explicit.norm(dim=-1, keepdim=True))


def test_norm_keeps_the_direction_of_tiny_features():
    """elu(-20) + 1 is rounded to 0 in single precision, and the row with it."""
    q, k, v = qkv(dtype=torch.float64)
    exact = attend("norm", q - 20, k, v)
    torch.testing.assert_close(
        attend("norm", q.float() - 20, k.float(), v.float()), exact.float(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_diag(mask):
    q, k, v = qkv()
    seen = visible(37, "block", 6) & visible(37, mask)
    y = attend("diag", q, k, v, mask=mask, block=6)
    torch.testing.assert_close(y, masked_softmax(q @ k.mT / math.sqrt(8), seen) @ v)


def test_gaam():
    torch.manual_seed(0)
    q, k, v = qkv()
    learned = {key: value.double() for key, value in gaam_parameters(3, 8).items()}
    learned["offset"] = learned["offset"] + torch.randn(3, 3)
    y = attend("gaam", q, k, v, **learned)
    for head in range(3):
        x = k[:, head]
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True) + 1e-8
        product = torch.ones_like(x)
        for delta, c in zip(learned["offset"][head], learned["width"][head]):
            z = (x - (mean + delta)) / variance.sqrt()
            product = product * torch.exp(-(z**2) / (2 * c**2)) / torch.sqrt(2 * math.pi * c**2)
        torch.testing.assert_close(y[:, head], v[:, head] * product / product.sum(1, keepdim=True))


def test_gaam_weights_sum_to_one_over_tokens():
    _, k, _ = qkv()
    weights = gaussian_weights(k, None, None)
    torch.testing.assert_close(weights.sum(-2), torch.ones_like(weights.sum(-2)))


@pytest.mark.parametrize("n, mask", [(1, "full"), (17, "block")])
def test_gaam_gives_a_single_token_all_the_weight(n, mask):
    q, k, v = (x.requires_grad_() for x in qkv(n=n))
    y = attend("gaam", q, k, v, mask=mask, window=16)
    torch.testing.assert_close(y[..., -1, :], v[..., -1, :])
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), [k, v]))


def test_softmax_of_one_width_copies_nothing(monkeypatch):
    q, k, v, seen = *torch.randn(3, 1, 2, 5, 8), []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x, **options: seen.extend(x) or plain(*x, **options))
    attend("softmax", q, k, v)
    assert all(a is b for a, b in zip(seen, (q, k, v)))
