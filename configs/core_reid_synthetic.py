# Synthetic Market -> synthetic Duke, sized for two CPU cores. The images: `python datasets/synthesize_reid.py
# --out data/synthetic_reid --scale small --seed 1`. Results: docs/results/core_reid_synthetic.md.
seed = 1
workers = 0
image_size = (64, 32)
# a quarter of ResNet-18's width and half its depth, with maps of 8x4
backbone = dict(
    type="visionkit.TimmFeatures", model_name="resnet18", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), output_stride=8
)

source = dict(type="visionkit.Market1501", root="data/synthetic_reid", cache="memory", cache_size=image_size)
target = dict(type="visionkit.DukeMTMCreID", root="data/synthetic_reid", cache="memory", cache_size=image_size)

augmentation = dict(pad=4)
supervised_training = dict(
    type="visionkit.SourcePretraining", epochs=18, iters_per_epoch=40, identities=16, instances=4, lr=1.5e-3,
    weight_decay=5e-4, warmup_epochs=1, milestones=(12, 16), val_interval=6, augmentation=augmentation,
)
stages = dict(
    # two of the six pairs of cameras, to save time; each needs some 1 500 iterations before clothes keep their colours
    camstyle=dict(
        type="visionkit.CamStyleStage", pairs=[(1, 2), (3, 4)], image_size=image_size, load_size=(72, 36), epochs=12,
        decay_epochs=12, iters_per_epoch=60, batch_size=2, optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999)),
        model=dict(
            generator=dict(ngf=16, num_blocks=2, dropout=0.0), discriminator=dict(ndf=16, num_layers=2), cycle_weight=10.0,
        ),
        test_batch_size=64,
    ),
    source=dict(supervised_training, styled="camstyle", report="direct transfer"),
    target=dict(
        type="visionkit.TargetFinetuning", init_from="source", num_clusters=150, epochs=10, iters_per_epoch=30,
        identities=16, instances=4, lr=3.5e-4, weight_decay=5e-4, report="adapted", augmentation=augmentation,
    ),
    # what the target's labels would give
    supervised=dict(supervised_training, data="target", unlabelled=None, report="supervised"),
)
del augmentation, supervised_training
