import re
import sys
from functools import partial

import pytest
import torch
from ops.attention.explicit import qkv

from visionkit.errors import VisionKitError
from visionkit.ops import attention_names
from visionkit.ops.attention import _registry, attend, mechanism

NAMES = attention_names()
ROWS_OF_OTHER_SUMS = "gaussian", "nala", "norm", "lightning", "sigmoid"  # nala's: 0 of a query that no key agrees with


def call(name, q, k, v, mask="full", window=16, **options):
    mask = "causal" if mask not in mechanism(name).masks else mask
    parameters = mechanism(name).parameters(q.shape[1], q.shape[-1])
    parameters = {key: value.to(q.dtype) for key, value in parameters.items()}
    return attend(name, q, k, v, mask=mask, window=window, **parameters, **options)


def test_wrong_names_are_told():
    with pytest.raises(VisionKitError, match="did you mean 'softplus'"):
        mechanism("softpluss")
    with pytest.raises(VisionKitError, match="mask 'window' is not supported"):
        attend("diag", *qkv(), mask="window")


@pytest.mark.parametrize(
    "name, options, least",
    [
        *((name, dict(mask="window", window=-1), 0) for name in NAMES if "window" in mechanism(name).masks),
        *(("softmax", dict(mask="block", window=window), 1) for window in (0, -1, 2.5)),
        *((name, dict(block=0), 1) for name in ("diag", "hyper", "flex_prefill", "landmark")),
        ("flex_prefill", dict(min_budget=-1), 0),
        ("hyper", dict(samples=0), 1),
        ("dhsa", dict(chunk=0), 1),
        ("dhsa", dict(budget=0), 1),
        ("landmark", dict(retrieve=0), 1),
        ("landmark", dict(retrieve=-1), 1),
    ],
)
def test_numbers_out_of_range_are_told(name, options, least):
    option, value = list(options.items())[-1]
    with pytest.raises(VisionKitError, match=f"^{option}={value}: expected a whole number of at least {least}$"):
        attend(name, *qkv(), **options)


@pytest.mark.parametrize("power", [0, -1, float("nan")])
def test_powers_out_of_range_are_told(power):
    """The power 0 of the weight of an unseen key is 1."""
    with pytest.raises(VisionKitError, match=f"^power={power}: expected a number above 0$"):
        attend("softplus", *qkv(), mask="causal", power=power)


@pytest.mark.parametrize("name", NAMES)
def test_every_docstring_tells_its_source_and_its_cost(name):
    function = mechanism(name).function()
    text = function.__doc__ + sys.modules[function.__module__].__doc__
    assert mechanism(name).source in text
    assert "Complexity" in text and re.search("[Nn]ot (for|a way|an approx)", text)
    assert re.search(r"\b20\d\d\b", function.__doc__)


@pytest.mark.parametrize("mask", ["full", "causal", "window", "block"])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_masks(name, mask):
    q, k, v = qkv(n=36)
    if mask not in mechanism(name).masks:
        pytest.skip("not supported")
    torch.manual_seed(0)
    y = call(name, q, k, v, mask, window=12)
    assert y.shape == v.shape and y.dtype == v.dtype and y.isfinite().all()
    moved = torch.cat([v[..., :30, :], v[..., 30:, :] + 1], dim=-2)
    torch.manual_seed(0)
    change = (call(name, q, k, moved, mask, window=12) - y).abs().amax(dim=(0, 1, 3))
    unseen = dict(full=0, causal=30, window=18, block=24)[mask]
    assert change[:unseen].max() < 1e-12 if unseen else True
    assert change[30:].max() > 1e-6


@pytest.mark.parametrize("shape", [(0, 3, 5, 8), (2, 3, 0, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_gives_nothing_out(name, shape):
    """An empty batch, or no tokens: a division by zero, an empty torch.cat or endless recursion before."""
    q, k, v = torch.randn(3, *shape, requires_grad=True).unbind(0)
    parameters = {key: value.requires_grad_() for key, value in mechanism(name).parameters(3, 8).items()}
    y = attend(name, q, k, v, mask=mechanism(name).masks[0], **parameters)
    assert y.shape == shape
    y.sum().backward()
    assert not any(x.grad.any() for x in parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_queries_without_keys_are_told_so(name):
    q, k, v = qkv(n=3)
    with pytest.raises(VisionKitError, match="^attention: 3 queries have no keys to attend to; give at least one$"):
        attend(name, q, k[:, :, :0], v[:, :, :0], mask=mechanism(name).masks[0])


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_tell_the_shape(name):
    """Sparse ones counted chosen keys, which meta tensors cannot tell."""
    q, k, v = (x.to("meta") for x in qkv(n=300))
    parameters = {key: value.to("meta") for key, value in mechanism(name).parameters(3, 8).items()}
    assert attend(name, q, k, v, mask=mechanism(name).masks[0], **parameters).shape == v.shape


@pytest.mark.parametrize("name", ["linear", "dhsa", "flex_prefill"])
def test_torch_compile_sees_one_graph_of_a_mechanism_that_was_not_called_before(name, monkeypatch):
    if name == "dhsa" and torch.__version__ < (2, 10):
        pytest.skip("the length of the longest chunk is another graph's before torch 2.10")
    monkeypatch.setattr(_registry, "_functions", {})
    compiled = torch.compile(partial(attend, name), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*qkv(n=200)), attend(name, *qkv(n=200)))


@pytest.mark.parametrize("name", NAMES)
def test_one_token(name):
    q, k, v = (x.requires_grad_() for x in qkv(n=1))
    options = dict(power=15) if name == "softplus" else {}
    y = call(name, q, k, v, **options)
    assert y.shape == v.shape and y.isfinite().all()
    assert all(x is None or x.isfinite().all() for x in torch.autograd.grad(y.sum(), [q, k, v], allow_unused=True))
    if name not in ROWS_OF_OTHER_SUMS:
        torch.testing.assert_close(y, v, atol=1e-4, rtol=1e-4)  # some add a small number where they divide


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    q, k, v = (x.requires_grad_() for x in qkv(n=6, d=4, heads=2, batch=1))
    torch.manual_seed(0)
    mask = "full" if "full" in mechanism(name).masks else "causal"
    parameters = mechanism(name).parameters(2, 4)
    names = list(parameters)
    values = [value.double().requires_grad_() for value in parameters.values()]

    def function(q, k, v, *values):
        return attend(name, q, k, v, mask=mask, **dict(zip(names, values)))

    assert torch.autograd.gradcheck(function, (q, k, v, *values))
