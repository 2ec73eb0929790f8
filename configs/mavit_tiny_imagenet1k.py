# MAViT-T, the recipe of MALA (arXiv 2507.00698; settings of the released code). Published top-1: 82.9.
# Other sizes: --cfg-options stages.train.model.model=mavit_small ...
_base_ = ["./_base_/imagenet1k.py"]

stages = dict(
    train=dict(
        model=dict(model="mavit_tiny", model_options=dict(drop_path_rate=0.1)),
        warmup_epochs=5, min_lr=1e-5, repeats=3, ema=0.99992, sync_bn=True,
    ),
)
