# CUHK03-NP (detected) -> Market-1501.
# Published (mAP / rank-1 / 5 / 10, ResNet-101): V2 84.5 / 93.9 / 97.6 / 98.7, V1 83.6 / 93.6 / 97.3 / 98.7,
# direct transfer 35.5 / 63.3 / 77.8 / 83.2, without SECAB 83.9 / 93.7 / 97.4 / 98.6.
_base_ = ["./_base_/core_reid_v2.py"]

source = dict(type="visionkit.CUHK03NP", root="data")
target = dict(type="visionkit.Market1501", root="data")

stages = dict(camstyle=dict(batch_size=8), target=dict(num_clusters=900))
