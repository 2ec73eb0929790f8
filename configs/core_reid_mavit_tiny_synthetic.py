# core_reid_synthetic.py on a MAViT, as small as its ResNet: three stages, maps of 4x2 from images of 64x32.
_base_ = "core_reid_synthetic.py"

backbone = dict(
    _delete_=True, type="visionkit.TimmFeatures", model_name="mavit_tiny", out_index=-2, dims=(32, 64, 128, 128),
    num_heads=(1, 2, 4, 4), depths=(1, 1, 2, 1), drop_path_rate=0.0,
)
