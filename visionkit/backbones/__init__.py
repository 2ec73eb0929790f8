"""Backbones, one family a file, registered with timm and with ``MODELS``."""

from visionkit.backbones.attention import AttentionLayer, attention_names, set_attention
from visionkit.backbones.fpn import backbone_with_fpn
from visionkit.backbones.mavit import MAViT
from visionkit.backbones.mm import MMBackbone
from visionkit.backbones.nalaformer import NaLaFormer
from visionkit.backbones.resnet import ResNet, TimmFeatures
from visionkit.backbones.soft import SOFT
from visionkit.backbones.vit import vit_base_attention, vit_small_attention, vit_tiny_attention

__all__ = [
    "SOFT",
    "AttentionLayer",
    "MAViT",
    "MMBackbone",
    "NaLaFormer",
    "ResNet",
    "TimmFeatures",
    "attention_names",
    "backbone_with_fpn",
    "set_attention",
    "vit_base_attention",
    "vit_small_attention",
    "vit_tiny_attention",
]
