"""Another attention in NViST's decoder, by its name."""

from torch import Tensor, nn

from visionkit.backbones.attention import AttentionCore
from visionkit.errors import VisionKitError
from visionkit.nvs.decoder import Attention, Block


class NamedAttention(nn.Module):
    """The decoder's self-attention with the attention of a name; projections and their names stay."""

    def __init__(self, old: Attention, attention: str, **options: object) -> None:
        super().__init__()
        self.num_heads = old.num_heads
        self.q, self.k, self.v, self.proj = old.q, old.k, old.v, old.proj
        width = old.q.out_features
        self.core = AttentionCore(attention, self.num_heads, width // self.num_heads, **options)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (B, L, width) -> (B, L, width)."""
        heads = [
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in ((self.q, query), (self.k, key), (self.v, value))
        ]
        return self.proj(self.core(*heads).transpose(1, 2).flatten(2))


def set_self_attention(model: nn.Module, attention: str, **options: object) -> nn.Module:
    """Puts an attention into every self-attending block of NViST's decoder, in place; cross-attention stays softmax.

    Args:
        model: NViST or its decoder.
        attention: one of [visionkit.backbones.attention.attention_names].
        **options: of the attention.

    Returns:
        The model.

    Raises:
        VisionKitError: no such attention, or a model without such blocks.
    """
    blocks = [block for block in model.modules() if isinstance(block, Block) and not block.cross]
    if not blocks:
        raise VisionKitError(f"{type(model).__name__}: has no self-attending blocks; give NViST or its decoder")
    for block in blocks:
        weight = block.attn.q.weight
        block.attn = NamedAttention(block.attn, attention, **options).to(weight.device, weight.dtype)
    return model
