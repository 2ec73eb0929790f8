# VeRi-776 -> VehicleID.
# Published (mAP / rank-1 / 5 / 10, ResNet-101) on 800 test identities: V2 67.04 / 58.32 / 76.51 / 84.32 with 700
# clusters, direct transfer 61.28 / 53.50 / 69.81 / 76.13. 1600: 63.02 / 53.49 / 74.36 / 81.85; 2400: 57.99 / 48.62 / 68.30 / 77.11
# (target.subset). Scores are averages over the protocol's ten random galleries.
_base_ = ["./_base_/core_reid_v2_vehicle.py"]

source = dict(type="visionkit.VeRi776", root="data")
target = dict(type="visionkit.VehicleID", root="data", subset=800)

stages = dict(target=dict(num_clusters=700))
