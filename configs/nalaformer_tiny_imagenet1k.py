# NaLaFormer-T (arXiv 2506.21137), with MALA's recipe, as its released code has it. Published top-1: 82.6.
_base_ = ["./_base_/imagenet1k.py"]

stages = dict(
    train=dict(
        model=dict(model="nalaformer_tiny"),
        warmup_epochs=5, min_lr=1e-5, repeats=3, ema=0.99992, sync_bn=True,
    ),
)
