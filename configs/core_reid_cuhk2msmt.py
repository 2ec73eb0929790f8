# CUHK03-NP (detected) -> MSMT17.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 40.4 / 67.3 / 79.0 / 83.1 with 2500 clusters; baseline 37.2 / 65.5 / 77.2 / 81.0.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.CUHK03NP", root="data")
target = dict(type="visionkit.MSMT17", root="data")

stages = dict(camstyle=dict(batch_size=8), target=dict(num_clusters=2500))
