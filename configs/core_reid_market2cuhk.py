# Market-1501 -> CUHK03-NP (detected).
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 62.9 / 61.0 / 79.6 / 87.2 with 900 clusters; baseline 55.2 / 55.7 / 72.1 / 81.0. Which labelling of CUHK03-NP was used is
# not stated; boxes="labeled" is an option of the data set.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.CUHK03NP", root="data")

stages = dict(target=dict(num_clusters=900))
