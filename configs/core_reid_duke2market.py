# DukeMTMC-reID -> Market-1501.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 84.4 / 93.6 / 97.7 / 98.7 with 700 clusters; ResNet-50: 83.8 / 93.7 / 97.7 / 98.4 (authors' homepage).
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.DukeMTMCreID", root="data")
target = dict(type="visionkit.Market1501", root="data")

stages = dict(target=dict(num_clusters=700))
