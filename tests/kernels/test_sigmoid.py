import pytest
import torch
from kernels.compare import assert_same, inputs

from visionkit.ops import dispatch
from visionkit.ops.attention import attend


def attention(form, mask):
    def run(*qkv):
        with dispatch.use_kernels(form):
            return attend("sigmoid", *qkv, mask=mask)

    return run


@pytest.mark.parametrize(
    "dtype, order, dim, mask",
    [
        (torch.float64, "tokens", 8, "full"),
        (torch.float64, "heads", 12, "causal"),
        (torch.float32, "channels", 16, "full"),
        (torch.float16, "tokens", 16, "causal"),
        (torch.bfloat16, "tokens", 16, "full"),
    ],
)
def test_sigmoid(dtype, order, dim, mask):
    """70 tokens do not fill the last tile of rows, nor of keys."""
    tensors = inputs((1, 1, 70, dim), (1, 1, 70, dim), (1, 1, 70, 20), dtype=dtype, order=order)
    assert_same(attention("triton", mask), attention("torch", mask), tensors)


@pytest.mark.parametrize("queries, keys, mask", [(3, 7, "full"), (7, 3, "causal")])
def test_batches_heads_and_other_keys(queries, keys, mask):
    tensors = inputs((2, 2, queries, 16), (2, 2, keys, 16), (2, 2, keys, 16), dtype=torch.float64, order="tokens")
    assert_same(attention("triton", mask), attention("torch", mask), tensors)
