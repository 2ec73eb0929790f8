# CORE-ReID V2 on vehicles: square images, and one CycleGAN from the source's to the target's look.
_base_ = ["./core_reid_v2.py"]
image_size = (256, 256)

stages = dict(
    camstyle=dict(
        direction="AtoB", epochs=100, decay_epochs=100, batch_size=32, model=dict(generator=dict(dropout=0.0)),
    ),
)
