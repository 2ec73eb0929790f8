"""One function per operation: plain PyTorch that reads like the formula, or a kernel in its place.

No ``nn.Module``. The only state is which kernels are chosen (:mod:`visionkit.ops.dispatch`) and what was imported.
"""

from visionkit.ops.attention import attention_names
from visionkit.ops.attention.linear import linear_attention
from visionkit.ops.depthwise import depthwise_conv
from visionkit.ops.gaussian import gaussian_attention
from visionkit.ops.mala import mala_attention
from visionkit.ops.march import ColourNetwork, render_cp, render_triplanes, render_vector_matrix
from visionkit.ops.nala import nala_attention
from visionkit.ops.norm import layer_norm
from visionkit.ops.rotary import rotary_2d, rotary_pairs, rotary_table_2d

__all__ = [
    "ColourNetwork",
    "attention_names",
    "depthwise_conv",
    "gaussian_attention",
    "layer_norm",
    "linear_attention",
    "mala_attention",
    "nala_attention",
    "render_cp",
    "render_triplanes",
    "render_vector_matrix",
    "rotary_2d",
    "rotary_pairs",
    "rotary_table_2d",
]
