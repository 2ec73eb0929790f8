"""A model and a data set small enough to train in a second."""

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel

from visionkit.registry import DATASETS, METRICS, MODELS


@DATASETS.register_module(force=True)
class ToyData(torch.utils.data.Dataset):
    def __init__(self, length=24, broken=False):
        self.length = length
        self.broken = broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = 0.01 * torch.randn(3)  # stands for augmentation: it must repeat after a resume
        value = float("nan") if self.broken and index == 3 else 0.1 * index
        return dict(image=torch.full((3,), value) + noise, pid=index % 4, path=f"image_{index}.jpg")


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    def __init__(self, width=3):
        super().__init__()
        self.layer = torch.nn.Linear(3, width)
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, mode="loss", image=None, pid=None, path=None, index=None, **views):
        if mode == "loss":
            first = next(iter(views.values()))
            return dict(loss=torch.nn.functional.cross_entropy(self.norm(self.layer(first["image"])), first["pid"] % 3))
        return self.layer(image)


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(row.sum()) for row in data_samples]

    def compute_metrics(self, results):
        return dict(mAP=sum(results) / len(results))


def runner_cfg(epochs=4, broken=False, width=3):
    train_data = dict(type="visionkit.ToyData", broken=broken)
    loader = dict(batch_size=6, dataset=dict(type="visionkit.ToyData"))
    return dict(
        model=dict(type="visionkit.ToyModel", width=width),
        train_dataloader=dict(view=dict(batch_size=6, num_workers=1, dataset=train_data)),
        train_cfg=dict(type="visionkit.NamedLoadersTrainLoop", max_epochs=epochs, iters_per_epoch=3, val_interval=2),
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=0.01)),
        param_scheduler=[dict(type="LinearLR", start_factor=0.1, end=2)],
        val_dataloader=loader,
        val_cfg=dict(type="ValLoop"),
        val_evaluator=dict(type="visionkit.ToyMetric"),
        test_dataloader=loader,
        test_cfg=dict(type="TestLoop"),
        test_evaluator=dict(type="visionkit.ToyMetric"),
        best="mAP",
    )


def config(**options):
    return dict(
        stages=dict(
            first=dict(type="visionkit.RunnerStage", report="first", runner=runner_cfg(**options)),
            second=dict(type="visionkit.RunnerStage", report="second", init_from="first", runner=runner_cfg(**options)),
        )
    )
