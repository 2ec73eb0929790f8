# Market-1501 -> MSMT17.
# Published (mAP / rank-1 / 5 / 10, ResNet-101): V2 44.1 / 71.3 / 82.4 / 86.0, V1 41.9 / 69.5 / 80.3 / 84.4,
# direct transfer 11.7 / 30.2 / 42.9 / 48.0, without SECAB 43.2 / 70.3 / 81.8 / 85.2.
_base_ = ["./_base_/core_reid_v2.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.MSMT17", root="data")

stages = dict(target=dict(num_clusters=2000))
