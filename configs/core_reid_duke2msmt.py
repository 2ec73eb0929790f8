# DukeMTMC-reID -> MSMT17.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 45.2 / 72.2 / 82.9 / 86.3 with 2500 clusters (authors' homepage).
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.DukeMTMCreID", root="data")
target = dict(type="visionkit.MSMT17", root="data")

stages = dict(target=dict(num_clusters=2500))
