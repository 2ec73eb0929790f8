# Market-1501 -> MSMT17.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 41.9 / 69.5 / 80.3 / 84.4 with 2500 clusters; baseline 40.1 / 67.3 / 79.4 / 83.1.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.MSMT17", root="data")

stages = dict(target=dict(num_clusters=2500))
