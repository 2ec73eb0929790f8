"""HyperAttention, FlexPrefill, DHSA, landmark attention and DiffQKV against N x N matrices."""

import math

import pytest
import torch
from ops.attention.explicit import masked_softmax, qkv, visible

from visionkit.errors import VisionKitError
from visionkit.ops.attention import attend
from visionkit.ops.attention.dhsa import chosen_keys, dhsa_attention, key_borders
from visionkit.ops.attention.diff_qkv import diff_qkv_attention
from visionkit.ops.attention.flex_prefill import chosen_blocks, flex_prefill_attention, js_divergence, smallest_set
from visionkit.ops.attention.hyper import buckets, hyper_attention
from visionkit.ops.attention.landmark import landmark_attention

CAUSAL = pytest.mark.parametrize("causal", [False, True])


def exact(q, k, v, causal=False, mask=None):
    seen = visible(q.shape[-2], "causal" if causal else "full")
    return masked_softmax(q @ k.mT / math.sqrt(q.shape[-1]), seen if mask is None else seen & mask) @ v


# HyperAttention


@CAUSAL
def test_hyper_is_exact_for_few_tokens(causal):
    q, k, v = qkv(n=130, dv=5)
    torch.testing.assert_close(hyper_attention(q, k, v, causal=causal), exact(q, k, v, causal))


@CAUSAL
@pytest.mark.parametrize("n", [128, 133])
def test_hyper_is_exact_when_all_is_sampled(causal, n, monkeypatch):
    monkeypatch.setattr("visionkit.ops.attention.hyper.ROWS", 50)
    q, k, v = qkv(n=n, dv=5)
    y = hyper_attention(q, k, v, causal=causal, block=4, samples=n, min_length=20)
    torch.testing.assert_close(y, exact(q, k, v, causal))


@CAUSAL
def test_hyper_comes_closer_with_more_samples(causal):
    q, k, v = qkv(n=1024, heads=2, batch=1)
    truth = exact(q, k, v, causal)

    def error(samples):
        r = torch.Generator().manual_seed(0)
        y = hyper_attention(q, k, v, causal=causal, block=64, samples=samples, min_length=128, generator=r)
        return ((y - truth).norm() / truth.norm()).item()

    assert error(1024) < 1e-12 < error(256) < error(32)


def test_hyper_estimates_one_for_values_of_one():
    q, k, _ = qkv(n=256)
    y = hyper_attention(q, k, torch.ones_like(k), block=32, samples=32, min_length=20)
    torch.testing.assert_close(y, torch.ones_like(k))


def test_neighbouring_buckets_differ_in_one_sign():
    signs = torch.tensor([[(i >> bit & 1) * 2.0 - 1 for bit in range(7)] for i in range(128)])
    place = buckets(signs, torch.eye(7))
    assert sorted(place.tolist()) == list(range(128))
    in_order = signs[place.argsort()]
    assert ((in_order[1:] != in_order[:-1]).sum(-1) == 1).all()


def test_hyper_gradients():
    q, k, v = (x.requires_grad_() for x in qkv(n=24, d=4, heads=1, batch=1))

    def function(q, k, v):
        r = torch.Generator().manual_seed(0)
        return hyper_attention(q, k, v, block=4, samples=6, min_length=8, generator=r)

    assert torch.autograd.gradcheck(function, (q, k, v))


# FlexPrefill


@CAUSAL
def test_flex_prefill_is_exact_for_all_of_the_attention(causal):
    q, k, v = qkv(n=70, dv=5)
    y = flex_prefill_attention(q, k, v, causal=causal, block=16, gamma=1.0, min_budget=1)
    torch.testing.assert_close(y, exact(q, k, v, causal))


@CAUSAL
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_flex_prefill_reads_the_chosen_blocks_alone(causal, tau):
    q, k, v = qkv(n=150, dv=5)
    k = 4 * k
    options = dict(causal=causal, block=16, tau=tau, gamma=0.5, min_budget=1)
    chosen = chosen_blocks(q, k, **options)
    assert not chosen.all() and chosen.diagonal(dim1=-2, dim2=-1).all()
    mask = chosen.repeat_interleave(16, -1).repeat_interleave(16, -2)[..., :150, :150]
    torch.testing.assert_close(flex_prefill_attention(q, k, v, **options), exact(q, k, v, causal, mask))


def test_flex_prefill_tells_patterns_apart():
    """Alike tokens in a block: the means tell all. One strong key in a block: they miss it, and its column is kept."""
    r = torch.Generator().manual_seed(0)
    alike = 2 * torch.randn(1, 1, 8, 6, dtype=torch.float64, generator=r).repeat_interleave(16, dim=2)
    q, k = torch.cat([alike, alike], 1), torch.cat([alike, torch.zeros_like(alike)], 1)
    q[:, 1], k[:, 1, 37] = 1, 20
    chosen = chosen_blocks(q, k, causal=True, block=16, tau=0.1, gamma=0.9, min_budget=1)
    means = masked_softmax(alike[:, 0, ::16] @ alike[:, 0, ::16].mT / 6**0.5, visible(8, "causal"))
    covered = means[chosen[:, 0]].sum() / 8
    assert 0.9 <= covered < 1
    assert chosen[0, 1, 2:, 2].all() and chosen[0, 1].sum() < 8 * 9 / 2


def test_smallest_set():
    scores = torch.tensor([0.1, 0.5, 0.05, 0.35])
    assert smallest_set(scores, 0.8).tolist() == [False, True, False, True]
    assert smallest_set(scores, 0.86).tolist() == [True, True, False, True]
    assert smallest_set(scores, 0.1, least=2).tolist() == [False, True, False, True]


def test_js_divergence():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(js_divergence(p, q), torch.tensor(math.log(2)))
    assert js_divergence(p, p) == 0


# DHSA


@CAUSAL
@pytest.mark.parametrize("chunk", [2, 8])  # of 2: more chunks than are done at a time
def test_dhsa_is_exact_with_all_keys(causal, chunk):
    q, k, v = qkv(n=70, dv=5)
    torch.testing.assert_close(dhsa_attention(q, k, v, causal=causal, chunk=chunk, budget=70), exact(q, k, v, causal))


@CAUSAL
def test_dhsa_reads_the_best_chunks(causal):
    q, k, v = qkv(n=60, dv=5)
    borders = torch.zeros(2, 3, 60, dtype=torch.bool)
    starts = [0, 7, 20, 21, 40, 52]
    borders[..., starts] = True
    ends = starts[1:] + [60]
    mask = torch.zeros(2, 3, 60, 60, dtype=torch.bool)
    mean = lambda x: torch.stack([x[..., a:b, :].mean(-2) * math.sqrt(b - a) for a, b in zip(starts, ends)], -2)
    scores = mean(q) @ mean(k).mT
    budget = 0
    for b in range(2):
        for h in range(3):
            for i in range(6):
                order = [i] + [j for j in scores[b, h, i].argsort(descending=True).tolist() if j != i]
                order = [j for j in order if not (causal and j > i)]
                for j in order[:2]:
                    mask[b, h, starts[i] : ends[i], starts[j] : ends[j]] = True
                budget = max(budget, sum(ends[j] - starts[j] for j in order[:2]))
    # the reference takes two chunks whatever their length: compare rows in which the budget ends where these do
    y = dhsa_attention(q, k, v, causal=causal, budget=budget, borders=borders)
    same = mask.sum(-1) == budget
    assert same.any()
    torch.testing.assert_close(y[same], exact(q, k, v, causal, mask)[same])


def test_dhsa_keys_are_as_many_as_asked():
    q, k, _ = qkv(n=64)
    lengths, keys = chosen_keys(q, k, key_borders(k, 8), 20, False)
    assert lengths.shape[-1] == 8 and (lengths.sum(-1) == 64).all() and keys.shape[2:] == (8, 20)
    assert all(len(set(row.tolist())) == 20 for row in keys.flatten(0, 2))


def test_dhsa_takes_equal_chunks_and_the_tokens_of_the_last_one_in_order():
    """Which of them the budget cut off was left to the device."""
    q, k, v = (torch.zeros(1, 2, 60, 8) for _ in range(3))
    borders = torch.arange(60) % 6 == 0
    _, keys = chosen_keys(q, k, borders.expand(1, 2, -1), 20, False)
    for chunk in range(10):
        own = list(range(6 * chunk, 6 * chunk + 6))
        assert keys[0, 1, chunk].tolist() == own + [i for i in range(60) if i not in own][:14]
    assert key_borders(k, 6)[..., :10].all()


def test_dhsa_of_heads_with_other_numbers_of_chunks():
    q, k, v = qkv(n=60)
    borders = torch.rand(2, 3, 60, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.02, 0.1, 0.5])[:, None]
    torch.testing.assert_close(dhsa_attention(q, k, v, budget=60, borders=borders), exact(q, k, v))


def test_dhsa_borders_are_where_keys_change():
    _, k, _ = qkv(n=64, d=32)
    k = 0.1 * k
    k[..., :24, 0] += 3
    k[..., 24:, 1] += 3
    assert key_borders(k, 32)[..., [0, 24]].all()


# Landmark attention


def landmark_weights(q, k, offset, block, causal, retrieve):
    n, scale = q.shape[-2], q.shape[-1] ** -0.5
    weights = torch.zeros(*q.shape[:3], n, dtype=torch.float64)
    starts = range(0, n, block)
    for i in range(n):
        query = q[..., i, :]
        past = [s for s in starts if not causal or s + block <= i - i % block]
        own = list(range(i - i % block, i + 1)) if causal else []
        means = [k[..., s : s + block, :].mean(-2) + offset for s in past]
        groups = [(query * mean).sum(-1) * scale for mean in means]
        if retrieve is not None and len(groups) > retrieve:
            stacked = torch.stack(groups, -1)
            least = stacked.topk(retrieve).values[..., -1]
            groups = [g.masked_fill(g < least, -math.inf) for g in groups]
        tokens = [(query * k[..., j, :]).sum(-1) * scale for j in own]
        shares = torch.stack(groups + tokens, -1).softmax(-1)
        for at, s in enumerate(past):
            inside = ((k[..., s : s + block, :] * query[..., None, :]).sum(-1) * scale).softmax(-1)
            weights[..., i, s : s + block] = inside * shares[..., at, None]
        for at, j in enumerate(own):
            weights[..., i, j] = shares[..., len(past) + at]
    return weights


@CAUSAL
@pytest.mark.parametrize("retrieve", [None, 2])
def test_landmark(causal, retrieve, monkeypatch):
    monkeypatch.setattr("visionkit.ops.attention.landmark.RETRIEVING_ROWS", 16)
    q, k, v = qkv(n=44, dv=5)
    offset = torch.randn(3, 8, dtype=torch.float64)
    weights = landmark_weights(q, k, offset, 6, causal, retrieve)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    y = landmark_attention(q, k, v, causal=causal, block=6, retrieve=retrieve, offset=offset)
    torch.testing.assert_close(y, weights @ v)
    ones = landmark_attention(q, k, torch.ones_like(v), causal=causal, block=6, retrieve=retrieve, offset=offset)
    torch.testing.assert_close(ones, torch.ones_like(v))


@CAUSAL
def test_landmark_retrieves_under_autocast(causal):
    q, k, v = (x.float() for x in qkv(n=44))
    exact = landmark_attention(q, k, v, causal=causal, block=6, retrieve=2)
    with torch.autocast("cpu", torch.bfloat16):
        y = landmark_attention(q, k, v, causal=causal, block=6, retrieve=2)
    assert y.dtype == torch.float32
    assert (y - exact).abs().mean() < 0.02


def test_landmark_with_one_block_is_softmax():
    q, k, v = qkv(n=20)
    torch.testing.assert_close(landmark_attention(q, k, v, causal=True, block=20), exact(q, k, v, True))
    torch.testing.assert_close(landmark_attention(q, k, v, block=20), exact(q, k, v))


@pytest.mark.parametrize("name", ["hyper", "flex_prefill", "landmark"])
def test_blocks_of_a_mechanism_inside_those_of_the_mask(name):
    q, k, v = qkv(n=36)
    y = attend(name, q, k, v, mask="block", window=12, block=6)
    first = attend(name, *(x[..., :12, :] for x in (q, k, v)), block=6)
    torch.testing.assert_close(y[..., :12, :], first)


# DiffQKV


@pytest.mark.parametrize("mask", ["full", "causal", "window", "block"])
def test_diff_qkv(mask):
    r = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=r)
    q, k, v, narrow = draw(2, 8, 20, 12), draw(2, 2, 20, 4), draw(2, 4, 20, 5), draw(8, 12, 4)
    y = attend("diff_qkv", q, k, v, mask=mask, window=6, narrow=narrow)
    for head in range(8):
        scores = q[:, head] @ narrow[head] @ k[:, head // 4].mT / math.sqrt(4)
        expected = masked_softmax(scores, visible(20, mask, 6)) @ v[:, head // 2]
        torch.testing.assert_close(y[:, head], expected)


def test_diff_qkv_with_equal_heads_is_softmax():
    q, k, v = qkv()
    torch.testing.assert_close(diff_qkv_attention(q, k, v), exact(q, k, v))


def test_diff_qkv_tells_of_wrong_heads():
    q, k, v = qkv(heads=4)
    with pytest.raises(VisionKitError, match="3 heads of keys"):
        diff_qkv_attention(q, k[:, :3], v)
