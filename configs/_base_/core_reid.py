# CORE-ReID's recipe (arXiv 2508.03064; hyper-parameters of the released code). A config adds `source`, `target` and the
# number of clusters. Everything here can be changed there or by --cfg-options stages.target.epochs=40.
seed = 1
workers = 4
image_size = (256, 128)
backbone = dict(type="visionkit.ResNet", depth=50, weights="imagenet")  # the papers report depth=101; 50 reaches 99 % of it

stages = dict(
    # one CycleGAN for every pair of the source's cameras; images="FOLDER" takes styled images made before
    camstyle=dict(type="visionkit.CamStyleStage"),
    source=dict(
        type="visionkit.SourcePretraining", styled="camstyle", epochs=120, iters_per_epoch=200, identities=32, instances=4,
        lr=3.5e-4, weight_decay=5e-4, warmup_epochs=10, milestones=(40, 70), val_interval=5, report="direct transfer",
    ),
    target=dict(
        type="visionkit.TargetFinetuning", init_from="source", num_clusters=700, epochs=80, iters_per_epoch=400,
        identities=32, instances=4, lr=3.5e-4, weight_decay=5e-4, report="adapted",
    ),
)
