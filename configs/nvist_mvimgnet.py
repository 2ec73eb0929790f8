# NViST on MVImgNet, portrait 160 x 90 (Jang & Agapito, CVPR 2024; hyper-parameters of the released code for one A100).
# The released code wants 40 GB; a smaller batch_size with lr scaled by its square root asks for less.
# mae_checkpoint takes mae_visualize_vit_base.pth of MAE (CC BY-NC 4.0); None starts from nothing.
seed = 1
workers = 8
image_size = (160, 90)
source = dict(type="visionkit.MVImgNet", root="data/MVImgNet", images="images", centre="cube")  # as released

stages = dict(
    mae=dict(
        type="visionkit.MAEStage",
        model=dict(patch_size=5, embed_dim=768, depth=12, num_heads=12, mae_checkpoint=None, bf16=True),
        batch_size=42, views=2, epochs=30, iters_per_epoch=1000, warmup_iters=1000, lr=1e-4, ema=None,
    ),
    nvist=dict(
        type="visionkit.NViSTStage", init_from="mae",
        model=dict(
            encoder_patch_size=5, encoder_embed_dim=768, encoder_depth=12, encoder_num_heads=12, decoder_embed_dim=768,
            decoder_depth=12, decoder_num_heads=12, decoder_output_dim=32, resolution=48, decoder_patch_size=3,
            representation="vector_matrix", camera_conditioning="adaln", sigma_dim=8, rgb_dim=24, num_samples=48,
            extra_rays=600, lpips_weight=0.1, distortion_weight=0.001, bf16=True,
        ),
        batch_size=11, views=5, epochs=300, iters_per_epoch=1000, warmup_iters=10000, ema=0.995, clip=1.0,
        lr=dict(encoder=4e-5, decoder=2e-4, renderer=2e-4), report="NViST",
    ),
)
