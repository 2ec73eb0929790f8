"""Training-free calibration of attention sinks (ACT) in a loaded model."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from visionkit.errors import VisionKitError
from visionkit.ops.attention.act import calibrate_sinks


@dataclass
class SinkMaps:
    """Where sinks were in the last forward pass, a tensor for each layer of attention in order of their calls.

    Attributes:
        sinks: (B, H, M) booleans.
        received: (B, H, M), the mean attention that each key receives, before calibration.
    """

    sinks: list[Tensor] = field(default_factory=list)
    received: list[Tensor] = field(default_factory=list)


@contextlib.contextmanager
def calibrated_attention(
    model: nn.Module,
    *,
    threshold: float = 0.1,
    beta: float = 0.4,
    skip: int = 1,
    layers: Collection[int] | None = None,
    heads: Mapping[int, Collection[int]] | None = None,
) -> Iterator[SinkMaps]:
    """Calibrates sinks in every softmax attention of a model while the context is open, see [calibrate_sinks].

    Works on models that call ``torch.nn.functional.scaled_dot_product_attention``, as timm's and this library's do;
    weights are then made in full, and dropout comes after calibration. The model itself is not changed.

    Example:
        >>> with calibrated_attention(model, layers=range(2, 12)) as maps:
        ...     logits = model(image)
        >>> maps.sinks[2].float().mean()  # share of keys that are sinks in layer 2

    Args:
        model: a model, usually in eval mode.
        threshold, beta, skip: options of [calibrate_sinks]; ``skip=0`` for a model without a class token.
        layers: numbers of the layers to calibrate, from 0, in order of their calls; None for all.
        heads: numbers of the heads to calibrate, by number of the layer; layers that are not named calibrate all.

    Raises:
        VisionKitError: ``beta`` outside [0, 1], or a forward pass without any softmax attention.
    """
    if not 0 <= beta <= 1:
        raise VisionKitError(f"beta={beta}: expected a share between 0 and 1")
    maps = SinkMaps()

    def begin(*_: object) -> None:
        maps.sinks.clear()
        maps.received.clear()

    def end(*_: object) -> None:
        if not maps.sinks:
            raise VisionKitError(
                f"{type(model).__name__}: calls no scaled_dot_product_attention, nothing to calibrate; use another"
            )

    def calibrate(weights: Tensor) -> Tensor:
        layer = len(maps.sinks)
        done = calibrate_sinks(weights, threshold=threshold, beta=beta, skip=skip)
        maps.sinks.append(done.sinks)
        maps.received.append(done.received)
        if layers is not None and layer not in layers:
            return weights
        if heads is not None and layer in heads:
            chosen = torch.zeros(weights.shape[1], dtype=torch.bool, device=weights.device)
            chosen[list(heads[layer])] = True
            return torch.where(chosen[:, None, None], done.weights, weights)
        return done.weights

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    try:
        with _Intercept(calibrate):
            yield maps
    finally:
        for hook in hooks:
            hook.remove()


class _Intercept(TorchFunctionMode):
    """Puts weights -> weights into every scaled_dot_product_attention."""

    def __init__(self, calibrate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.calibrate = calibrate

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return _attend(self.calibrate, *args, **kwargs)


def _attend(
    calibrate: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The calls and the result of scaled_dot_product_attention."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
    weights = calibrate(_weights(query, key, attn_mask, is_causal, scale))
    return F.dropout(weights, dropout_p) @ value


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)
