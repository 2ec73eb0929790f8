# Cascade Mask R-CNN on MAViT-T, COCO.
_base_ = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"

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
)
sync_bn = "torch"  # over all GPUs, as released: each has two images
# AdamW and a 1x schedule of batch 16, as released; on GPUs with half precision: type="AmpOptimWrapper"
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
