# CUHK03-NP (detected) -> Market-1501.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 83.6 / 93.6 / 97.3 / 98.7 with 900 clusters; baseline 82.2 / 92.0 / 96.7 / 97.6.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.CUHK03NP", root="data")
target = dict(type="visionkit.Market1501", root="data")

stages = dict(camstyle=dict(batch_size=8), target=dict(num_clusters=900))
