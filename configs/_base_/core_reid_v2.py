# CORE-ReID V2 (arXiv 2508.04036): SECAB in the fusion (here the default) and some images wholly grey.
_base_ = ["./core_reid.py"]

stages = dict(
    source=dict(augmentation=dict(grayscale=0.05)),
    target=dict(augmentation=dict(grayscale=0.05)),
)
