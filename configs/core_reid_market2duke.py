# Market-1501 -> DukeMTMC-reID.
# Published (mAP / rank-1 / 5 / 10, ResNet-101, best epoch by the target's test labels):
# 74.8 / 84.8 / 92.4 / 94.4 with 900 clusters; ResNet-50: 74.1 / 84.4 / 92.1 / 94.0. The authors' ResNet-50 log with 700
# clusters: direct transfer 26.0 / 44.6 / 59.2 / 65.1, adapted 70.7 / 82.2 / 90.4 / 92.4 at its best epoch, mAP 64.6 at the last.
# From the authors' homepage, not from the paper, which has no Duke rows.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.DukeMTMCreID", root="data")

stages = dict(target=dict(num_clusters=900))
