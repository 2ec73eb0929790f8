"""Another attention in NViST's decoder, by its name."""

from torch import nn

from visionkit.backbones.attention import AttentionCore
from visionkit.errors import VisionKitError
from visionkit.nvs.decoder import Block


def set_self_attention(model: nn.Module, attention: str, **options: object) -> nn.Module:
    """Puts an attention into every self-attending block of NViST's decoder, in place; cross-attention stays softmax.

    The projections keep their weights.

    Args:
        model: NViST or its decoder.
        attention: one of [visionkit.backbones.attention.attention_names].
        **options: options of the attention function, the same in every call.

    Returns:
        The model.

    Raises:
        VisionKitError: no such attention, or a model without such blocks.
    """
    layers = [block.attn for block in model.modules() if isinstance(block, Block) and not block.cross]
    if not layers:
        raise VisionKitError(f"{type(model).__name__}: has no self-attending blocks; give NViST or its decoder")
    for layer in layers:
        core = AttentionCore(attention, layer.num_heads, layer.head_dim, **options)
        layer.core = core.to(layer.q.weight.device, layer.q.weight.dtype)
    return model
