"""Any attention by its name: the core that backbones call, and a layer for plain vision transformers.

A core is a function of q, k and v, each (B, heads, N, head_dim). Known are those of :mod:`visionkit.ops.attention` (its
``softmax`` is PyTorch's own function here, without causal masks and windows) and ``gaussian_norm`` (SOFT++).
"""

import inspect
from collections.abc import Callable
from functools import partial

from timm.models.vision_transformer import Attention as PlainAttention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from visionkit.errors import VisionKitError
from visionkit.ops import attention as library
from visionkit.ops import dispatch
from visionkit.ops.attention._masks import empty_output
from visionkit.ops.gaussian import gaussian_attention
from visionkit.ops.rotary import Rotary, rotary_2d
from visionkit.registry import MODELS

OWN = {
    "softmax": scaled_dot_product_attention,
    "gaussian_norm": partial(gaussian_attention, symmetric=True),
}


def attention_names() -> list[str]:
    """Every name that ``attention=`` takes."""
    return sorted(OWN | dict.fromkeys(library.attention_names()))


class AttentionCore(nn.Module):
    """An attention function with its own parameters, if it has any.

    Args:
        name: one of [attention_names].
        num_heads, head_dim: number of heads and channels of each, by which a function's own parameters are sized.
        **options: handed to the function on every call.

    Raises:
        VisionKitError: no such attention, or no such option of it.
    """

    def __init__(self, name: str, num_heads: int, head_dim: int, **options: object) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.function, parameters = find_attention(name, num_heads, head_dim)
        self.own = nn.ParameterDict({key: nn.Parameter(value) for key, value in parameters.items()})
        accepted = _accepted_options(self.function)
        self.takes_rotary, self.takes_gate = "rotary" in accepted, {"local", "gate"} <= accepted
        if wrong := sorted(set(options) - accepted):
            raise VisionKitError(
                f"attention={name!r}: has no option {wrong[0]!r}; it takes {', '.join(sorted(accepted))}"
            )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None = None, **gating: Tensor) -> Tensor:
        """q, k and v, each (B, heads, N, head_dim), and rotary tables -> (B, heads, N, head_dim).

        No batch or no queries give an empty output. A function that does not know of rotation gets q and k already
        turned. ``gating``: ``local`` and ``gate``, each (B, heads, N, head_dim), of a function that takes them, see
        [fuses_gate].

        Raises:
            VisionKitError: queries, but not a key.
        """
        if (y := empty_output(q, k, v, *self.own.values(), *gating.values())) is not None:
            return y
        options = dict(self.options, **self.own, **gating)
        if rotary is not None and self.takes_rotary:
            options["rotary"] = rotary
        elif rotary is not None:
            q, k = rotary_2d(q, *rotary), rotary_2d(k, *rotary)
        return self.function(q, k, v, **options)

    def fuses_gate(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether a kernel will run that adds a local branch and multiplies by a gate in its last pass.

        q, k and v are (B, heads, N, head_dim).
        """
        return self.takes_gate and dispatch.kernel(f"{self.name}_attention", q, k, v) is not None

    def extra_repr(self) -> str:
        """Name and options."""
        return ", ".join([repr(self.name), *(f"{key}={value!r}" for key, value in self.options.items())])


def find_attention(name: str, num_heads: int, head_dim: int) -> tuple[Callable, dict[str, Tensor]]:
    """The function of a name, and its own learned tensors at their start.

    Raises:
        VisionKitError: no such attention.
    """
    if isinstance(name, str) and name in OWN:
        return OWN[name], {}
    if name not in library.attention_names():
        raise VisionKitError(f"attention={name!r}: no such attention; choose one of {', '.join(attention_names())}")
    found = library.mechanism(name)
    return found.function(), found.parameters(num_heads, head_dim)


def _accepted_options(function: Callable) -> set[str]:
    if function is scaled_dot_product_attention:  # built in: it has no signature
        return {"attn_mask", "dropout_p", "is_causal", "scale"}
    return set(inspect.signature(function).parameters) - {"q", "k", "v"}


@MODELS.register_module()
class AttentionLayer(nn.Module):
    """Multi-head self-attention over a sequence; parameter names are those of timm's vision transformers.

    Args:
        dim: channels, a multiple of ``num_heads``.
        num_heads: number of heads.
        attention: one of [attention_names].
        qkv_bias: whether the projection to q, k and v has a bias.
        **options: options of the attention function, the same in every call.

    Raises:
        VisionKitError: no such attention, or ``dim`` does not divide.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, attention: str = "softmax", qkv_bias: bool = True, **options: object
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise VisionKitError(f"dim={dim}: expected a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.core = AttentionCore(attention, num_heads, dim // num_heads, **options)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, dim) -> (B, N, dim). The masks stand here because timm's blocks hand them on.

        Raises:
            VisionKitError: a mask was given.
        """
        if attn_mask is not None or is_causal:
            raise VisionKitError(
                f"attn_mask, is_causal: attention={self.core.name!r} is used here without masks; leave them out"
            )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.core(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(y)))


def set_attention(model: nn.Module, attention: str, **options: object) -> nn.Module:
    """Puts an attention into every block of a transformer whose layers are those of timm's ViT, in place.

    Projections, norms and dropout of the output stay. Attention masks and dropout of weights are not carried over.

    Args:
        model: a transformer with sub-modules ``*.attn`` that compute as timm's ``Attention`` or [AttentionLayer] do.
            Others, with relative positions, rotations or windows, are left as they are.
        attention: one of [attention_names].
        **options: options of the attention function, the same in every call.

    Returns:
        The model.

    Raises:
        VisionKitError: no such attention, or a model without such layers.
    """
    layers = [(owner, owner.attn) for owner in model.modules() if is_plain_attention(getattr(owner, "attn", None))]
    if not layers:
        raise VisionKitError(
            f"{type(model).__name__}: has no attention layers like those of timm's ViT; give a plain vision transformer"
        )
    for owner, old in layers:
        new = AttentionLayer(
            old.qkv.in_features, old.num_heads, attention, qkv_bias=old.qkv.bias is not None, **options
        )
        for name in ("qkv", "q_norm", "k_norm", "norm", "proj", "proj_drop"):
            setattr(new, name, getattr(old, name))
        owner.attn = new.to(old.qkv.weight.device, old.qkv.weight.dtype).train(old.training)
    return model


def is_plain_attention(layer: object) -> bool:
    """Whether this layer computes as those of timm's ViT: others may have the same names but rotate, or add biases."""
    plain = getattr(type(layer), "forward", None) in (PlainAttention.forward, AttentionLayer.forward)
    return plain and getattr(layer, "gate", None) is None
