# CUHK03-NP (detected) -> MSMT17.
# Published (mAP / rank-1 / 5 / 10, ResNet-101): V2 40.7 / 68.7 / 79.7 / 83.4, V1 40.4 / 67.3 / 79.0 / 83.1,
# without SECAB 40.5 / 68.0 / 79.2 / 83.1. The published direct-transfer row looks like a copy of CUHK->Market's.
_base_ = ["./_base_/core_reid_v2.py"]

source = dict(type="visionkit.CUHK03NP", root="data")
target = dict(type="visionkit.MSMT17", root="data")

stages = dict(camstyle=dict(batch_size=8), target=dict(num_clusters=2000))
