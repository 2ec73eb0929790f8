# VehicleID -> VERI-Wild.
# Published (mAP / rank-1 / 5 / 10, ResNet-101) on 3000 test identities: V2 40.2 / 76.6 / 90.2 / 92.1, direct transfer
# 20.9 / 48.2 / 64.3 / 70.7. 5000: 34.9 / 70.2 / 86.2 / 89.3; 10000: 27.8 / 62.1 / 79.8 / 82.3 (target.subset).
# The number of clusters behind these rows is not published; 700 is a guess.
_base_ = ["./_base_/core_reid_v2_vehicle.py"]

source = dict(type="visionkit.VehicleID", root="data")
target = dict(type="visionkit.VERIWild", root="data", subset=3000)

stages = dict(target=dict(num_clusters=700))
