"""Plain vision transformers with any attention: timm's, with its attention layers exchanged."""

from typing import Any

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionkit.backbones.attention import set_attention
from visionkit.backbones.base import default_cfg
from visionkit.backbones.published import with_weights, without_weights

SIZES = ("tiny", "small", "base")
default_cfgs = generate_default_cfgs(
    {f"vit_{size}_attention.untrained": default_cfg(crop_pct=0.9, first_conv="patch_embed.proj") for size in SIZES}
)


def _create(
    size: str,
    pretrained: bool = False,
    attention: str = "softmax",
    attention_options: dict | None = None,
    **options: Any,  # noqa: ANN401
) -> nn.Module:
    plain = f"vit_{size}_patch16_224"
    if isinstance(options.get("pretrained_cfg"), str):  # a tag of ours, which timm's model does not know
        del options["pretrained_cfg"]
    model = without_weights(timm.create_model(plain, pretrained, **with_weights(plain, pretrained, options)))
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        model.pretrained_cfg["architecture"] = f"vit_{size}_attention"
    return set_attention(model, attention, **(attention_options or {}))


@register_model
def vit_tiny_attention(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # noqa: ANN401
    """timm's ``vit_tiny_patch16_224`` with ``attention=`` (a name) and ``attention_options=``."""
    return _create("tiny", pretrained, **kwargs)


@register_model
def vit_small_attention(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # noqa: ANN401
    """timm's ``vit_small_patch16_224`` with ``attention=`` and ``attention_options=``."""
    return _create("small", pretrained, **kwargs)


@register_model
def vit_base_attention(pretrained: bool = False, **kwargs: Any) -> nn.Module:  # noqa: ANN401
    """timm's ``vit_base_patch16_224`` with ``attention=`` and ``attention_options=``."""
    return _create("base", pretrained, **kwargs)
