"""p-Laplacian adapters: fine-tuning a frozen vision transformer by small parts after its attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.backbones.attention import is_plain_attention
from visionkit.errors import VisionKitError
from visionkit.ops.attention.p_laplacian import p_laplacian, strength


class PAdapter(nn.Module):
    """An attention layer and, after it, y + up(gelu(p_laplacian(A, down(y)))).

    Wu et al., arXiv 2312.10613. A is the mean of the heads' softmax weights. ``up`` starts at zero, so that the model
    starts as it was.

    Args:
        attention: a layer of timm's ViT, or [AttentionLayer].
        reduction: divisor of the width: the adapter has ``dim // reduction`` channels.
        p: exponent of [p_laplacian], above 1; 2 is plain averaging.
    """

    def __init__(self, attention: nn.Module, reduction: int = 8, p: float = 1.25) -> None:
        super().__init__()
        dim = attention.proj.out_features
        self.attention, self.p = attention, p
        self.down, self.up = nn.Linear(dim, max(1, dim // reduction)), nn.Linear(max(1, dim // reduction), dim)
        self.theta = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, **options: object) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        y = self.attention(x, **options)
        smoothed = p_laplacian(self._weights(x), self.down(y), strength(self.theta), self.p)
        return y + self.up(F.gelu(smoothed))

    def _weights(self, x: Tensor) -> Tensor:
        """The layer's softmax weights, mean of its heads, (B, N, N)."""
        layer = self.attention
        q, k, _ = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = layer.q_norm(q), layer.k_norm(k)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def add_p_adapters(model: nn.Module, *, reduction: int = 8, p: float = 1.25, head: str | None = "head") -> str:
    """Freezes a model, wraps each of its attention layers in a [PAdapter] in place, and tells what is trained.

    Args:
        model: a vision transformer with sub-modules ``*.attn`` that compute as timm's ``Attention`` does.
        reduction, p: options of every [PAdapter].
        head: name of a sub-module that is trained too; None for none.

    Returns:
        One line, such as ``trains 12,345 of 5,678,901 parameters (0.2 %)``.

    Raises:
        VisionKitError: a model without such layers, or without that head.
    """
    owners = [owner for owner in model.modules() if is_plain_attention(getattr(owner, "attn", None))]
    if not owners:
        raise VisionKitError(
            f"{type(model).__name__}: has no attention layers like those of timm's ViT; give a plain vision transformer"
        )
    if head is not None and not hasattr(model, head):
        raise VisionKitError(
            f"head={head!r}: {type(model).__name__} has no such part; give its classifier's name, or None"
        )
    model.requires_grad_(False)
    for owner in owners:
        weight = owner.attn.qkv.weight
        owner.attn = PAdapter(owner.attn, reduction, p).to(weight.device, weight.dtype)
        owner.attn.attention.requires_grad_(False)
    if head is not None:
        getattr(model, head).requires_grad_(True)
    return trained_parameters(model)


def trained_parameters(model: nn.Module) -> str:
    """How many parameters are trained, of how many."""
    trained = sum(x.numel() for x in model.parameters() if x.requires_grad)
    total = sum(x.numel() for x in model.parameters())
    return f"trains {trained:,} of {total:,} parameters ({trained / total:.1%})"
