# CORE-ReID V2 (arXiv 2508.04036): SECAB in the fusion (here the default), some images wholly grey, and k-means as in its
# development code.
_base_ = ["./core_reid.py"]

stages = dict(
    source=dict(augmentation=dict(grayscale=0.05)),
    target=dict(
        augmentation=dict(grayscale=0.05), kmeans=dict(batch_size=512, max_no_improvement=50, reassignment_ratio=0.05),
    ),
)
