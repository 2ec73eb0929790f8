"""Parts that the families share. Maps inside a backbone are (B, H, W, C), so that channels lie together in memory:
linear layers and layer norms need no copy, and convolutions see them as ``channels_last``.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as hooks_of_all
from torch.utils._python_dispatch import _get_current_dispatch_mode, is_traceable_wrapper_subclass

from visionkit.ops.depthwise import depthwise_conv
from visionkit.ops.norm import layer_norm
from visionkit.ops.rotary import Rotary, rotary_pairs, rotary_table_2d

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
GLOBAL_HOOKS = (
    hooks_of_all._global_forward_hooks,
    hooks_of_all._global_forward_pre_hooks,
    hooks_of_all._global_backward_hooks,
    hooks_of_all._global_backward_pre_hooks,
)
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "none": lambda x: x}


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, activation: (B, H, W, C_in) -> (B, ceil(H / stride), ceil(W / stride), C_out).

    In eval mode the norm is folded into the convolution's weights, on every call, so that nothing can go stale, unless
    the map is smaller than they are, or a hook looks at the parts.

    Args:
        in_dim, dim: channels.
        stride: stride of the convolution.
        activation: ``"relu"``, ``"gelu"``, or ``"none"``.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 1, activation: str = "none") -> None:
        super().__init__()
        # weights as safetensors wants them; laid out like the maps they would save about 1 % of a model's time
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x, conv, activate = channels_first(x), self.conv, ACTIVATIONS[self.activation]
        fused = suits_onednn(conv, x)
        if not may_fold(conv, self.norm) or (fused and is_smaller_than_weights(x, conv)):
            return activate(channels_last(self.norm(conv(x))))
        weight, bias = fold_batch_norm(conv.weight, conv.bias, self.norm)
        shape = (conv.padding, conv.stride, conv.dilation)
        if fused:
            multiply = torch.ops.mkldnn._convolution_pointwise
            return channels_last(multiply(x, weight, bias, *shape, 1, self.activation, [], "none"))
        return activate(channels_last(F.conv2d(x, weight, bias, conv.stride, conv.padding)))


def is_smaller_than_weights(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the map that a convolution makes of x (B, C, H, W) has fewer entries than its weights."""
    cells = [-(-side // stride) for side, stride in zip(x.shape[2:], conv.stride, strict=True)]
    return x.shape[0] * cells[0] * cells[1] * conv.out_channels < conv.weight.numel()


def may_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a norm may go into the weights of the layer before it: a batch norm of torch's own, with statistics and
    weights, in eval mode, where no hook looks at either."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or norm.running_mean is None or norm.weight is None:
        return False
    if norm.training or not is_plain(layer) or has_hooks(norm):
        return False
    return norm.weight.dtype == norm.running_var.dtype == layer.weight.dtype  # a norm of half a model may be in float32


def fold_batch_norm(weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (C_out, ...) and bias (C_out,) of a layer that is followed by a batch norm in eval mode."""
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shape = (-1, *[1] * (weight.dim() - 1))
    return weight * factor.view(shape), (bias - norm.running_mean) * factor + norm.bias


class DepthwiseConv(nn.Conv2d):
    """Depthwise k x k convolution of a map (B, H, W, C), or of GELU of it; with ``residual`` the map is added."""

    def __init__(self, dim: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.residual = residual

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, residual=self.residual, gelu=gelu)


class LayerNorm(nn.LayerNorm):
    """Layer norm before a linear layer, so that under autocast it may give the type that this will take."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class ConvFFN(nn.Module):
    """Linear, GELU, x + depthwise 3x3, linear."""

    adds_onto = True

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim, 3, residual=True)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, gamma: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), times gamma (C,), added onto a map."""
        own = type(self.dwconv) is DepthwiseConv and not has_hooks(self.dwconv)
        # GELU's gradient is one pass with the convolution's; a trace, which is made with and without, is to be one
        if own and (torch.is_grad_enabled() or torch.jit.is_tracing()):
            y = self.dwconv(self.fc1(x), gelu=True)
        else:
            y = self.dwconv(linear_gelu(self.fc1, x))
        return linear(self.fc2, y, gamma, onto)


def add_branch(x: Tensor, drop: nn.Module, branch: Callable[..., Tensor], *inputs: Tensor | Rotary) -> Tensor:
    """x + drop(branch(*inputs)).

    In inference the branch adds x itself, in its last product: branch(*inputs, onto=x); unless it is a module whose
    class does not say ``adds_onto`` itself, as one that a user has put there (a subclass may have another forward), or
    a hook looks at the branch alone.
    """
    drops = drop.training and not isinstance(drop, nn.Identity)
    adds = not isinstance(branch, nn.Module) or "adds_onto" in type(branch).__dict__
    watched = torch.is_grad_enabled() or torch.jit.is_tracing() or has_hooks(branch) or has_hooks(drop)
    if watched or drops or not adds:
        return x + drop(branch(*inputs))
    return branch(*inputs, onto=x)


def linear(layer: nn.Linear, x: Tensor, gamma: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
    """onto + gamma * layer(x).

    Where nothing is differentiated a CPU leaves product and sum to one call of oneDNN, which passes over the map once.

    Args:
        layer: a linear layer with a bias.
        x: (..., in_features).
        gamma: a factor for each output. It costs least in the weights, which are mostly smaller than the map, or in the
            sum.
        onto: (..., out_features), a map of the type of x to which the result is added.

    Returns:
        (..., out_features).
    """
    if not suits_onednn(layer, x):
        if gamma is None:
            y = layer(x)
        else:
            y = F.linear(x, *scaled(layer, gamma)) if is_plain(layer) else layer(x) * gamma
        return y if onto is None else onto + y
    multiply = torch.ops.mkldnn._linear_pointwise
    if onto is None:
        weight, bias = (layer.weight, layer.bias) if gamma is None else scaled(layer, gamma)
        return multiply(x, weight, bias, "none", [], "")
    if gamma is None:
        return multiply.binary(x, onto, layer.weight, layer.bias, "add")
    return torch.addcmul(onto, multiply(x, layer.weight, layer.bias, "none", [], ""), gamma)


def scaled(layer: nn.Linear, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of gamma * layer."""
    return layer.weight * gamma[:, None], layer.bias * gamma


def linear_gelu(layer: nn.Linear, x: Tensor, approximate: str = "none") -> Tensor:
    """GELU of layer(x), as [linear] in one call where nothing is differentiated.

    Args:
        layer: a linear layer with a bias.
        x: (..., in_features).
        approximate: ``"none"`` for the exact GELU, ``"tanh"`` for its approximation.

    Returns:
        (..., out_features).
    """
    if suits_onednn(layer, x):
        return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], approximate)
    return F.gelu(layer(x), approximate=approximate)


def has_hooks(part: Callable) -> bool:
    """Whether a hook looks at a module; at a function none can."""
    if not isinstance(part, nn.Module):
        return False
    own = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    return bool(own or any(GLOBAL_HOOKS))


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is torch's own and no hook looks at it, so that its weights may be used in its place.

    Quantised weights, as torchao's, know few operations beside the layer's.
    """
    own = type(layer) in (nn.Linear, nn.Conv2d) and not has_hooks(layer)
    return own and not is_traceable_wrapper_subclass(layer.weight)


def suits_onednn(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer may run in oneDNN alone: plain float32 on a CPU, and nothing has to see its single operations.

    What would have to: gradients of either mode, autocast, a tracer, a compiler, a dispatch mode or a hook.
    """
    plain = type(x) is Tensor and is_plain(layer)
    full = plain and x.device.type == "cpu" and x.dtype == layer.weight.dtype == torch.float32
    if not full or torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return False
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None
    return HAS_ONEDNN and torch.backends.mkldnn.enabled and not watched


class RotaryTable(nn.Module):
    """Rotary tables of the last grid, kept until another one comes; no parameter, nothing in a checkpoint.

    What a trace or a transform of torch.func makes is of that call alone.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.cached: tuple[tuple | None, Rotary | None] = None, None  # one attribute: threads may share a model

    def forward(self, x: Tensor) -> Rotary:
        """A map (B, H, W, C) -> sin, cos and, if kept, their pairs, each (H * W, head_dim), of its type and device."""
        height, width = x.shape[1:3]
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
        if traced or x.is_meta or type(x) is not Tensor:
            return rotary_table_2d(height, width, self.head_dim, device=x.device, dtype=x.dtype)
        key = (height, width, x.device, x.dtype)
        known, table = self.cached
        if known != key:
            with torch.inference_mode(False), torch.no_grad():
                sin, cos = rotary_table_2d(height, width, self.head_dim, device=x.device, dtype=x.dtype)
                table = sin, cos, rotary_pairs(sin, cos)
            self.cached = key, table
        return table
