# NViST on ShapeNet-SRN cars, 128 x 128 on white. Customary evaluation: input view 64, all other views.
# No configuration was released for this set; what is not given by the data is that of configs/nvist_mvimgnet.py.
seed = 1
workers = 8
image_size = (128, 128)
source = dict(type="visionkit.ShapeNetSRN", root="data/ShapeNet-SRN", kind="cars")

stages = dict(
    mae=dict(
        type="visionkit.MAEStage",
        model=dict(patch_size=8, embed_dim=768, depth=12, num_heads=12, bf16=True),
        batch_size=42, views=2, epochs=30, iters_per_epoch=1000, warmup_iters=1000, lr=1e-4, ema=None,
    ),
    nvist=dict(
        type="visionkit.NViSTStage", init_from="mae",
        model=dict(
            encoder_patch_size=8, background="white", num_samples=48, extra_rays=600, lpips_weight=0.1,
            distortion_weight=0.001, bf16=True,
        ),
        batch_size=11, views=5, epochs=300, iters_per_epoch=1000, warmup_iters=10000, ema=0.995, clip=1.0,
        lr=dict(encoder=4e-5, decoder=2e-4, renderer=2e-4), report="NViST",
    ),
)
