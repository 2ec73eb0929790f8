import timm
import torch

FEW = {  # else they are exact for so few tokens
    "diag": dict(block=4),
    "hyper": dict(block=4, samples=4, min_length=1),
    "flex_prefill": dict(block=2, gamma=0.05, min_budget=1),
    "dhsa": dict(chunk=4, budget=4),
    "landmark": dict(block=4),
}


def tiny_vit():
    torch.manual_seed(0)
    options = dict(embed_dim=16, depth=3, num_heads=2, img_size=16, patch_size=4, num_classes=5)
    return timm.models.VisionTransformer(**options).eval()
