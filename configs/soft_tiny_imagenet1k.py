# SOFT-Tiny, the recipe of SOFT (NeurIPS 2021; settings of the released code). Published top-1: 79.3.
# SOFT++: --cfg-options stages.train.model.model=soft_norm_tiny (published 79.4). From scratch a direct solve takes the
# place of Newton's steps. The released code trains medium, large and huge with lr 3.5e-4, 3.3e-4 and 2.7e-4.
_base_ = ["./_base_/imagenet1k.py"]

stages = dict(
    train=dict(
        model=dict(model="soft_tiny", model_options=dict(drop_path_rate=0.1, inverse="solve"), bf16=False),
        warmup_epochs=10, min_lr=5e-5, clip=1.0, ema=0.99996,
    ),
)
