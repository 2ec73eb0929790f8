"""Lightning, LAWCAT, Aaren and low-rank attention, step by step or against N x N matrices."""

import math

import pytest
import torch
from ops.attention.explicit import masked_softmax, qkv, visible
from torch.nn import functional as F

from visionkit.errors import VisionKitError
from visionkit.ops.attention import _chunks, attend
from visionkit.ops.attention.aaren import aaren_attention, aaren_step
from visionkit.ops.attention.lawcat import lawcat_attention
from visionkit.ops.attention.lawcat import parameters as lawcat_parameters
from visionkit.ops.attention.lightning import head_decay, lightning_attention, lightning_step


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_chunks, "CHUNK", 8)


def rms(x):
    return x * math.sqrt(x.shape[-1]) / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("mask", ["full", "causal", "block"])
def test_lightning(mask):
    q, k, v = qkv(dv=5)
    decay = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    i = torch.arange(37)
    weights = decay[:, None, None] ** (i[:, None] - i).abs() * (F.silu(q) @ F.silu(k).mT) * visible(37, mask, 7)
    y = attend("lightning", q, k, v, mask=mask, window=7, log_decay=decay.log())
    torch.testing.assert_close(y, rms(weights @ F.silu(v)))


def test_lightning_steps_in_constant_memory():
    q, k, v = qkv()
    state, outputs = None, []
    for t in range(37):
        token = slice(t, t + 1)
        state, y = lightning_step(state, q[..., token, :], k[..., token, :], v[..., token, :])
        assert state.shape == (2, 3, 8, 8)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, -2), lightning_attention(q, k, v, causal=True))


@pytest.mark.parametrize("name", ["linear", "norm", "lightning", "lawcat"])
def test_sums_of_many_tokens_stay_in_range_under_autocast(name):
    """Of linear attention's 1000 tokens the weights sum to more than half precision knows."""
    q, k, v = (x.float() for x in qkv(n=1000, d=64))
    options = dict(log_decay=torch.zeros(3)) if name == "lightning" else {}
    learned = lawcat_parameters(3, 64) if name == "lawcat" else {}
    exact = attend(name, q + 2, k + 2, v, mask="causal", **options)
    with torch.autocast("cpu", torch.float16):
        y = attend(name, q + 2, k + 2, v, mask="causal", **options)
        attend(name, q, k, v, mask="causal", **options, **learned)  # whose products are in half precision
    torch.testing.assert_close(y, exact)


def test_lightning_decay():
    torch.testing.assert_close(head_decay(8).exp()[0], torch.tensor(math.exp(-0.5 * 1.00001)))
    assert (head_decay(4, layer=5, layers=6) > -1e-4).all()  # the last layer hardly forgets
    assert (head_decay(4, layer=1, layers=6) < head_decay(4, layer=2, layers=6)).all()
    with pytest.raises(VisionKitError, match="^layer=2: expected a whole number from 0 to 1, of layers=2$"):
        head_decay(4, layer=2)  # its weights grew with distance


def learned_lawcat():
    r = torch.Generator().manual_seed(1)
    return {
        name: value.double() + 0.3 * torch.randn(value.shape, generator=r, dtype=torch.float64)
        for name, value in lawcat_parameters(3, 8).items()
    }


def lawcat_weights(q, k, p, causal):
    def convolve(x, taps):
        def ahead(x):
            padded = F.pad(x, (0, 0, 3, 0))
            return sum(taps[:, None, :, t] * padded[..., t : t + 37, :] for t in range(4))

        return ahead(x) if causal else (ahead(x) + ahead(x.flip(-2)).flip(-2)) / 2

    def features(x):
        x = x @ p["feature"]
        return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)

    gates = torch.sigmoid((k * p["gate"][:, None]).sum(-1) + p["gate_bias"][:, None]) ** (1 / 16)
    fade = torch.ones(*gates.shape, 37, dtype=torch.float64)
    for i in range(37):
        for j in range(37):
            low, high = min(i, j), max(i, j)
            fade[..., i, j] = gates[..., low + 1 : high + 1].prod(-1)
    weights = features(convolve(q, p["conv_q"])) @ features(convolve(k, p["conv_k"])).mT * fade
    return weights * visible(37, "causal" if causal else "full")


@pytest.mark.parametrize("causal", [False, True])
def test_lawcat(causal):
    q, k, v = qkv(dv=5)
    p = learned_lawcat()
    weights = lawcat_weights(q, k, p, causal)
    y = lawcat_attention(q, k, v, causal=causal, **p)
    torch.testing.assert_close(y, weights / weights.sum(-1, keepdim=True) @ v)


def test_lawcat_starts_without_convolution():
    q, k, v = qkv()
    start = {name: value.double() for name, value in lawcat_parameters(3, 8).items()}
    plain = lawcat_attention(q, k, v)
    torch.testing.assert_close(lawcat_attention(q, k, v, **start), plain, rtol=0.05, atol=0.01)
    del start["gate"]
    torch.testing.assert_close(lawcat_attention(q, k, v, **start), plain)


@pytest.mark.parametrize("n", [1, 2, 7, 37, 64])
@pytest.mark.parametrize("learned", [False, True])
def test_aaren_is_softmax_over_prefixes(n, learned):
    q, k, v = qkv(n=n, dv=5)
    query = torch.randn(3, 8, dtype=torch.float64) if learned else None
    asked = query[:, None] if learned else q[..., :1, :]
    scores = (asked @ k.mT / math.sqrt(8)).expand(-1, -1, n, -1)
    torch.testing.assert_close(aaren_attention(q, k, v, query=query), masked_softmax(scores, visible(n, "causal")) @ v)


def test_aaren_streaming_equals_the_scan():
    q, k, v = qkv()
    k = 50 * k  # scores of hundreds must not overflow
    query, state, outputs = torch.randn(3, 8, dtype=torch.float64), None, []
    for t in range(37):
        token = slice(t, t + 1)
        state, y = aaren_step(state, q[..., token, :], k[..., token, :], v[..., token, :], query=query)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, -2), aaren_attention(q, k, v, query=query))


def test_aaren_ends_in_attention_pooling():
    q, k, v = qkv()
    query = torch.randn(3, 8, dtype=torch.float64)
    pooled = F.scaled_dot_product_attention(query[:, None].expand(2, -1, -1, -1), k, v)
    torch.testing.assert_close(aaren_attention(q, k, v, query=query)[..., -1:, :], pooled)


@pytest.mark.parametrize("learned", [False, True])
def test_low_rank(learned):
    q, k, v = qkv(n=98 if not learned else 37, dv=5)
    landmarks = torch.randn(3, 4, 8, dtype=torch.float64) if learned else None
    middle = landmarks if learned else q.unflatten(2, (49, 2)).mean(3)
    left, right = (q @ middle.mT / math.sqrt(8)).softmax(-1), (middle @ k.mT / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close((left @ right).sum(-1), torch.ones_like(q[..., 0]))
    torch.testing.assert_close(attend("low_rank", q, k, v, landmarks=landmarks), left @ right @ v)
