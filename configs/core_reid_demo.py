# The three stages in a minute or two: what `make demo` runs. Too small to say anything about the method.
_base_ = ["./core_reid_synthetic.py"]

source = dict(root="work_dirs/demo/data")
target = dict(root="work_dirs/demo/data")

supervised_training = dict(epochs=10, iters_per_epoch=20, identities=8, milestones=(6, 9), val_interval=5)
stages = dict(
    camstyle=dict(pairs=[(1, 2)], epochs=8, decay_epochs=8, iters_per_epoch=25),
    source=supervised_training,
    # at the rate of larger sets these few images come apart again after the first epoch
    target=dict(num_clusters=24, epochs=6, iters_per_epoch=15, identities=8, lr=5e-5),
    supervised=supervised_training,
)
del supervised_training
