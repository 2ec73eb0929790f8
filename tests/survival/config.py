"""Three stages on a handful of images: everything that a real run has, in seconds."""

source = dict(type="visionkit.Market1501", root="{{$SURVIVAL_DATA:.}}/market")
target = dict(type="visionkit.DukeMTMCreID", root="{{$SURVIVAL_DATA:.}}/duke")
backbone = dict(type="visionkit.TinyBackbone")
image_size = (16, 8)
stages = dict(
    camstyle=dict(
        type="visionkit.CamStyleStage",
        pairs=[(1, 2)],
        image_size=(16, 8),
        load_size=(20, 10),
        epochs=2,
        decay_epochs=1,
        iters_per_epoch=3,
        model=dict(generator=dict(ngf=2, num_blocks=1), discriminator=dict(ndf=2, num_layers=1), pool_size=2),
    ),
    source=dict(
        type="visionkit.SourcePretraining",
        styled="camstyle",
        epochs=4,
        warmup_epochs=2,
        milestones=(3,),
        val_interval=2,
        report="source",
        iters_per_epoch=3,
        identities=2,
        instances=2,
    ),
    target=dict(
        type="visionkit.TargetFinetuning",
        init_from="source",
        num_clusters=3,
        epochs=4,
        report="target",
        iters_per_epoch=3,
        identities=2,
        instances=2,
    ),
)
