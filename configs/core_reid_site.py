# Market-1501 -> your own site, of which there are crops and no labels: a folder with a sub-folder for each camera, see
# datasets/unlabelled_folder.md. num_clusters is a guess of how many people there are; half as many cost little,
# twice as many much.
# Without labels nothing picks a best epoch: the last one is the result, work_dirs/core_reid_site/target/epoch_80.pth.
_base_ = ["./_base_/core_reid.py"]

source = dict(type="visionkit.Market1501", root="data")
target = dict(type="visionkit.UnlabelledFolder", root="data/site")

stages = dict(
    source=dict(report="before adapting, on the source", report_on="source"),
    target=dict(num_clusters=500, report=None),
)
