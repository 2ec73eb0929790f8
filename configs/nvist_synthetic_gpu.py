# NViST at its full size on procedural scenes, for one GPU. Make the scenes first:
#   python datasets/synthesize_views.py --out data/synthetic_views_full --scenes 20000 --test-scenes 100 --device cuda
seed = 1
workers = 8
image_size = (160, 90)
source = dict(type="visionkit.MVImgNet", root="data/synthetic_views_full")

stages = dict(
    nvist=dict(
        type="visionkit.NViSTStage",
        model=dict(true_positions=True, num_samples=48, extra_rays=600, bf16=True),
        batch_size=8, views=5, epochs=50, iters_per_epoch=1000, warmup_iters=2000, ema=0.995,
        lr=dict(encoder=1e-4, decoder=2e-4, renderer=2e-4), report="full size",
    ),
)
