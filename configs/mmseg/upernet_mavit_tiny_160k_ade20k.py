# UperNet on MAViT-T, ADE20K: 160 000 steps of AdamW, as released.
_base_ = "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py"

custom_imports = dict(imports=["visionkit.backbones"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type="visionkit.MAViT",
        arch="tiny",
        out_indices=(0, 1, 2, 3),
        out_norms=True,  # a LayerNorm a map, as the released detectors have
        pretrained=None,  # a file with published ImageNet weights, MAViT_T.pth for instance
        # or weights of ours: init_cfg=dict(type="Pretrained", checkpoint="mavit_tiny.pth"),
    ),
    pretrained=None,
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
