# NViST at a size that two CPU cores train, on procedural scenes. Make them first:
#   python datasets/synthesize_views.py --out data/synthetic_views --scenes 320 --test-scenes 16 --views 10
seed = 1
image_size = (160, 90)
source = dict(type="visionkit.MVImgNet", root="data/synthetic_views")

stages = dict(
    nvist=dict(
        type="visionkit.NViSTStage",
        model=dict(
            encoder_patch_size=10, encoder_embed_dim=96, encoder_depth=2, encoder_num_heads=4, decoder_embed_dim=96,
            decoder_depth=4, decoder_num_heads=4, decoder_output_dim=16, resolution=24, decoder_patch_size=4,
            true_positions=True, sigma_dim=6, rgb_dim=10, rgb_feature_dim=32, background="learned", num_samples=24,
            whole_view=False, extra_rays=256, lpips_weight=0, frustum_depths=24,
        ),
        views=3, batch_size=4, epochs=80, iters_per_epoch=50, warmup_iters=100, ema=0.99,
        lr=dict(encoder=2e-3, decoder=2e-3, renderer=2e-3), report="small",
    ),
)
