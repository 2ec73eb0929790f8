# Semantic FPN on MAViT-T, ADE20K: 80 000 steps of AdamW, as released.
_base_ = "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"

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
    neck=dict(in_channels=[64, 128, 256, 512]),
    pretrained=None,
)
optim_wrapper = dict(
    _delete_=True, type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4)
)
param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=80000, val_interval=8000)
