# VehicleID -> VeRi-776.
# Published (mAP / rank-1 / 5 / 10, ResNet-101): V2 49.50 / 80.15 / 89.05 / 90.29 with 500 clusters,
# direct transfer 22.71 / 62.04 / 71.79 / 76.32, without SECAB 48.03 / 78.92 / 87.61 / 88.93.
_base_ = ["./_base_/core_reid_v2_vehicle.py"]

source = dict(type="visionkit.VehicleID", root="data")
target = dict(type="visionkit.VeRi776", root="data")

stages = dict(target=dict(num_clusters=500))
