# Market-1501 -> CUHK03-NP (detected).
# Published (mAP / rank-1 / 5 / 10, ResNet-101): V2 66.4 / 66.9 / 83.4 / 88.9, V1 62.9 / 61.0 / 79.6 / 87.2,
# direct transfer 23.9 / 24.6 / 40.3 / 48.9, without SECAB 65.0 / 65.1 / 82.6 / 87.6.
_base_ = ["./_base_/core_reid_v2.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.CUHK03NP", root="data")

stages = dict(target=dict(num_clusters=900))
