"""The two training stages of CORE-ReID, as Runner configs made from a dozen settings.

Stage 1 trains on a labelled source; stage 2 adapts the result to an unlabelled target with pseudo-labels. Both read the
data sets, the backbone and the image size from the config's top level, so that a config is a page of numbers.
CORE-ReID: arXiv 2508.03064; V2: arXiv 2508.04036.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from visionkit.checks import check_above, check_choice, check_counts, check_numbers, given
from visionkit.datasets.images import read_image
from visionkit.datasets.transforms import test_transforms, train_transforms
from visionkit.engine.config import build, check_settings, plain
from visionkit.engine.loaders import build_dataset
from visionkit.engine.pipeline import Context
from visionkit.engine.runner import VisionKitRunner
from visionkit.engine.stage import RunnerStage
from visionkit.errors import VisionKitError
from visionkit.registry import CLUSTERERS, METRICS, MODELS, STAGES
from visionkit.reid.encoder import build_backbone
from visionkit.reid.mean_teacher import ema_limit
from visionkit.reid.metric import ReIDMetric
from visionkit.reid.networks import CoreReID, ReIDModel, SourceReID
from visionkit.reid.pictures import draw_projection, draw_ranked_lists, ranked_lists
from visionkit.reid.pseudo_labels import VIEWS
from visionkit.reid.published import checkpoint_filter_fn

DOMAINS = ("source", "target")  # the data sets of a config


class ReIDStage(RunnerStage):
    """What both stages share: loaders, evaluation, optimiser, pictures.

    Args:
        name: The stage's name.
        epochs, iters_per_epoch: Number of epochs, and of steps in each.
        identities, instances: Number of identities in a batch, and of images of each.
        lr, weight_decay: Adam's learning rate and weight decay.
        val_interval: Epochs between validations, 5 in :class:`SourcePretraining`; None validates never, as on a source
            without query and gallery, and keeps no best checkpoint.
        augmentation: Changes to :func:`~visionkit.datasets.transforms.train_transforms`.
        model: Further settings of the model.
        metric: Further settings of ``visionkit.ReIDMetric``, as ``dict(rerank=dict(k1=20, k2=6, lambda_value=0.3))``.
        report: Name in the results table; None leaves the model out, and then the data of ``report_on`` need no
            query and gallery.
        report_on: ``"source"`` or ``"target"``: the data that the results are of.
        init_from, init_checkpoint: See :class:`~visionkit.engine.stage.RunnerStage`.
    """

    eval_batch = 128
    network: type[ReIDModel]

    def __init__(
        self,
        name: str,
        epochs: int,
        iters_per_epoch: int,
        identities: int = 32,
        instances: int = 4,
        lr: float = 3.5e-4,
        weight_decay: float = 5e-4,
        val_interval: int | None = 1,
        augmentation: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        metric: dict[str, Any] | None = None,
        report: str | None = None,
        report_on: str = "target",
        init_from: str | None = None,
        init_checkpoint: str = "last",
    ) -> None:
        super().__init__(name, report=report, init_from=init_from, init_checkpoint=init_checkpoint)
        counts = dict(epochs=epochs, iters_per_epoch=iters_per_epoch, identities=identities)
        check_counts(f"stage {name}", 1, **counts, **given(val_interval=val_interval))
        check_counts(f"stage {name}", 2, instances=instances)
        check_above(f"stage {name}", 0, lr=lr)
        check_numbers(f"stage {name}", weight_decay=weight_decay)
        check_choice(f"stage {name}", DOMAINS, report_on=report_on)
        self.epochs = epochs
        self.iters_per_epoch = iters_per_epoch
        self.identities = identities
        self.instances = instances
        self.lr = lr
        self.weight_decay = weight_decay
        self.val_interval = val_interval
        self.augmentation = augmentation or {}
        self.model = model or {}
        self.metric = metric or {}
        self.report_on = report_on

    def check(self, cfg: Config, earlier: Sequence[str]) -> None:
        """Try all settings and list all images that the stage will use.

        Raises:
            VisionKitError: a wrong setting, or an incomplete data set.
        """
        super().check(cfg, earlier)
        for option, taker in (("model", self.network), ("metric", ReIDMetric), ("augmentation", train_transforms)):
            check_settings(getattr(self, option), taker, f"stage {self.name}, {option}")
        METRICS.build(self.evaluator())
        self.check_cache(cfg)
        self.try_model(cfg)
        reported = [self.report_on] if self.report else []
        for which in dict.fromkeys([self.validated_on(), *reported]):
            if which is not None:
                build_dataset(self.eval_loader(cfg, which)["dataset"])

    def try_model(self, cfg: Config) -> None:
        """Build the model and show it images; raises what comes of wrong settings and of sizes that are too small."""
        model = self.model_cfg(cfg, num_classes=1)
        try:
            self._predict(model, cfg, "meta")  # takes no memory
        except Exception:  # some read numbers off tensors, and some are for a GPU alone
            self._predict(model, cfg, _own_device())

    @staticmethod
    def _predict(model: dict[str, Any], cfg: Config, device: str) -> None:
        with torch.device(device):
            MODELS.build(model)(image=torch.zeros(2, 3, *cfg["image_size"]), mode="predict")

    def check_cache(self, cfg: Config) -> None:
        """Raises VisionKitError where images are cached at another size than they are used at, smaller or in vain."""
        for which in DOMAINS:
            size = plain(cfg.get(which) or {}).get("cache_size")
            if size is not None and list(size) != list(cfg["image_size"]):
                raise VisionKitError(
                    f"config: {which}.cache_size={tuple(size)} is not image_size={tuple(cfg['image_size'])}; "
                    "give both the same value"
                )

    def validated_on(self) -> str | None:
        """The domain whose query and gallery pick the best checkpoint; None picks none."""
        raise NotImplementedError

    def common_cfg(self, cfg: Config) -> dict[str, Any]:
        """The parts of a Runner config that both stages have."""
        return dict(
            train_cfg=dict(
                type="visionkit.NamedLoadersTrainLoop",
                max_epochs=self.epochs,
                iters_per_epoch=self.iters_per_epoch,
                val_interval=self.val_interval or self.epochs,
            ),
            optim_wrapper=dict(
                type="OptimWrapper", optimizer=dict(type="Adam", lr=self.lr, weight_decay=self.weight_decay)
            ),
            log_interval=min(50, self.iters_per_epoch),
            image_size=list(cfg["image_size"]),
            **self.val_parts(cfg),
            **self.test_parts(cfg),
        )

    def val_parts(self, cfg: Config) -> dict[str, Any]:
        """The part of a Runner config that picks the best checkpoint."""
        which = self.validated_on()
        if which is None:
            return {}
        return dict(
            val_dataloader=self.eval_loader(cfg, which),
            val_cfg=dict(type="ValLoop"),
            val_evaluator=self.evaluator(),
            best="mAP",
        )

    def test_parts(self, cfg: Config) -> dict[str, Any]:
        """The part of a Runner config that makes the results."""
        if not self.report:
            return {}
        return dict(
            test_dataloader=self.eval_loader(cfg, self.report_on),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=self.evaluator(),
        )

    def weights(self, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """See the base class; released files of CORE-ReID serve as well."""
        return checkpoint_filter_fn(super().weights(content, path))

    def test_cfg(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        """The Runner's config without its training, with as many classes as the weights have."""
        classes = [len(each) for key, each in state.items() if key.endswith("classifier.weight") and each.dim() == 2]
        model = self.model_cfg(context.cfg, max(classes, default=1))
        return dict(self.test_parts(context.cfg), model=model, image_size=list(context.cfg["image_size"]))

    def model_cfg(self, cfg: Config, num_classes: int) -> dict[str, Any]:
        """The model's config."""
        raise NotImplementedError

    def evaluator(self) -> dict[str, Any]:
        """The metric's config."""
        return dict(type="visionkit.ReIDMetric", **self.metric)

    def eval_loader(self, cfg: Config, which: str) -> dict[str, Any]:
        """Query and gallery of the source or the target."""
        data = dict(domain(cfg, which), transforms=test_transforms(cfg["image_size"]))
        return dict(
            batch_size=self.eval_batch,
            num_workers=cfg.get("workers", 0),
            dataset=dict(type="visionkit.QueryGallery", dataset=data, use_cameras=self.metric.get("use_cameras", True)),
        )

    def train_loader(self, cfg: Config, dataset: dict[str, Any]) -> dict[str, Any]:
        """Batches of ``identities`` x ``instances`` images."""
        return dict(
            batch_size=self.identities * self.instances,
            num_workers=cfg.get("workers", 0),
            dataset=dataset,
            sampler=dict(type="visionkit.RandomMultipleGallerySampler", num_instances=self.instances),
        )

    def train_data(self, cfg: Config, which: str, **options: Any) -> dict[str, Any]:
        """The training split of the source or the target."""
        transforms = train_transforms(cfg["image_size"], **self.augmentation)
        return dict(domain(cfg, which), split="train", transforms=transforms, **options)

    def finish(self, runner: VisionKitRunner, context: Context) -> None:
        """Draw ranked lists and a projection of the features of the report's data."""
        if self.report and is_main_process():
            draw_pictures(runner, context.work_dir, self.report)


def draw_pictures(runner: VisionKitRunner, folder: Path, title: str) -> None:
    """Write ``ranked_lists.jpg`` and ``projection.png`` of the runner's last test, also to TensorBoard."""
    data, metric = runner.test_dataloader.dataset, runner.test_evaluator.metrics[0]
    features = metric.features
    query, gallery = (np.flatnonzero(np.asarray(data.roles) == role) for role in (0, 1))
    rows = [[data.samples[i] for i in role] for role in (query, gallery)]
    lists = ranked_lists(features[query], features[gallery], *rows, use_cameras=metric.use_cameras)
    sheet = draw_ranked_lists(lists, folder / "ranked_lists.jpg", title)
    runner.visualizer.add_image("ranked_lists", np.asarray(read_image(str(sheet))), step=runner.epoch)
    pids, camids = (np.asarray(labels)[query] for labels in (data.pids, data.camids))
    if len(query) < 4:  # nothing to project
        return
    plot = draw_projection(features[query], pids, camids, folder / "projection.png", title)
    runner.visualizer.add_image("projection", np.asarray(read_image(str(plot))), step=runner.epoch)


def domain(cfg: Config, which: str) -> dict[str, Any]:
    """The ``source`` or ``target`` data set of a config."""
    if which not in cfg:
        raise VisionKitError(f"config: has no {which}; expected {which} = dict(type='visionkit.Market1501', root=...)")
    return plain(cfg[which])


@STAGES.register_module()
class SourcePretraining(ReIDStage):
    """Stage 1: supervised training on labelled images; with ``data="target"`` the upper bound of adaptation.

    Args:
        data: The domain whose labels are used.
        unlabelled: A domain whose images pass through the network without a loss, which moves the statistics of its
            batch norms (MMT's trick); None leaves it out.
        styled: Images with other cameras' styles: the name of a camera-style stage or a folder; None uses real ones.
        style_camera: The camera of a styled image: that of its ``"origin"`` or of its ``"style"``.
        include_test: Train on the test split's images too, as the papers' style transfer does.
        warmup_epochs, milestones: Linear warm-up from 0.01 of the rate, then a tenth of it at each milestone.
        **options: See :class:`ReIDStage`.
    """

    network = SourceReID

    def __init__(
        self,
        name: str,
        data: str = "source",
        unlabelled: str | None = "target",
        styled: str | None = None,
        style_camera: str = "origin",
        include_test: bool = False,
        epochs: int = 120,
        iters_per_epoch: int = 200,
        warmup_epochs: int = 10,
        milestones: tuple[int, ...] = (40, 70),
        **options: Any,
    ) -> None:
        super().__init__(name, epochs=epochs, iters_per_epoch=iters_per_epoch, **dict(dict(val_interval=5), **options))
        check_counts(f"stage {name}", 0, warmup_epochs=warmup_epochs)
        check_choice(f"stage {name}", ("origin", "style"), style_camera=style_camera)
        check_choice(f"stage {name}", DOMAINS, data=data, **given(unlabelled=unlabelled))
        self.data = data
        self.unlabelled = unlabelled
        self.styled = styled
        self.style_camera = style_camera
        self.include_test = include_test
        self.warmup_epochs = warmup_epochs
        self.milestones = tuple(milestones)
        for milestone in self.milestones:
            check_counts(f"stage {name}", 1, milestones=milestone)

    def check(self, cfg: Config, earlier: Sequence[str]) -> None:
        """See :class:`ReIDStage`. Raises VisionKitError also where there are no styled images to come."""
        super().check(cfg, earlier)
        if self.styled and self.styled not in earlier and not Path(str(self.styled)).is_dir():
            raise VisionKitError(
                f"stage {self.name}: styled={self.styled!r} is neither an earlier stage nor a folder of styled "
                "images; give one of these"
            )
        if plain(cfg["backbone"]).get("weights") not in (None, "imagenet"):  # a file
            build_backbone(cfg["backbone"])
        for which in filter(None, (self.data, self.unlabelled)):
            build_dataset(self.train_data(cfg, which))

    def validated_on(self) -> str | None:
        """See :class:`ReIDStage`: the labelled domain."""
        return self.data if self.val_interval else None

    def runner_cfg(self, context: Context) -> dict[str, Any]:
        """The Runner's config; reads the training data's folder to count identities."""
        cfg = context.cfg
        options: dict[str, Any] = dict(include_test=True) if self.include_test else {}
        if self.styled:
            options["styled"] = dict(root=str(self._styled_root(context)), camera=self.style_camera)
        labelled = self.train_data(cfg, self.data, **options)
        loaders = dict(source=self.train_loader(cfg, labelled))
        if self.unlabelled:
            loaders["target"] = dict(
                batch_size=self.identities * self.instances,
                num_workers=cfg.get("workers", 0),
                dataset=dict(type="visionkit.PseudoLabelDataset", dataset=self.train_data(cfg, self.unlabelled)),
            )
        return dict(
            self.common_cfg(cfg),
            model=dict(self.model_cfg(cfg, build_dataset(labelled).num_pids), backbone=plain(cfg["backbone"])),
            train_dataloader=loaders,
            param_scheduler=self._schedule(),
        )

    def model_cfg(self, cfg: Config, num_classes: int) -> dict[str, Any]:
        """The model's config."""
        backbone = _untrained(cfg["backbone"])
        return dict(type="visionkit.SourceReID", backbone=backbone, num_classes=num_classes, **self.model)

    def _schedule(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []
        if self.warmup_epochs:
            # mmengine reaches the full rate in the epoch before `end`; the recipe does at epoch `warmup_epochs`
            steps.append(dict(type="LinearLR", start_factor=0.01, begin=0, end=self.warmup_epochs + 1))
        if self.milestones:
            steps.append(dict(type="MultiStepLR", milestones=list(self.milestones), gamma=0.1))
        return steps

    def _styled_root(self, context: Context) -> Path:
        if self.styled in context.outputs:
            return context.outputs[self.styled] / "images"
        return Path(str(self.styled))


@STAGES.register_module()
class TargetFinetuning(ReIDStage):
    """Stage 2: at every epoch cluster the unlabelled target into pseudo-labels, then train student and teacher on them.

    With ``report`` on the target the best checkpoint is the one of the highest mAP on its query and gallery, as the
    papers have it. A target without labels has none: with ``report=None`` the last epoch's checkpoint is the result.

    Args:
        num_clusters: Clusters of each view: a guess of the number of identities. On the stand-in half as many cost
            1 mAP and twice as many 11 (docs/results/core_reid_synthetic.md).
        kmeans: Further settings of :class:`~visionkit.reid.clustering.KMeansLabels`.
        clusterer: Another generator of pseudo-labels, as ``dict(type="visionkit.JaccardDBSCANLabels", eps=0.6)``;
            ``num_clusters`` is then the largest number of clusters that there may be: of more the largest stay, and
            the images of the others are left out.
        reset_optimizer: Forget Adam's moments at every epoch, as the released code does.
        compare_with_truth: Log NMI and ARI of every clustering against the target's identities, where it has any.
            Nothing is chosen by them.
        **options: See :class:`ReIDStage`; ``model`` holds the switches of ``visionkit.CoreReID``. Its ``ema_limit`` is
            by default :func:`~visionkit.reid.mean_teacher.ema_limit` of the number of steps.

    ``model=dict(preset="released")`` also sets, where they are not given:

    - ``ema_limit`` to the published 0.999;
    - ``init_checkpoint="best"``: the start from the source's best checkpoint;
    - ``kmeans=dict(n_init=3)``: three starts of k-means;
    - ``augmentation=dict(released=True)``: grey rectangles as the released code draws them. For stage 1 give this
      option to :class:`SourcePretraining` too.
    """

    network = CoreReID

    def __init__(
        self,
        name: str,
        num_clusters: int,
        kmeans: dict[str, Any] | None = None,
        clusterer: dict[str, Any] | None = None,
        reset_optimizer: bool = True,
        compare_with_truth: bool = False,
        epochs: int = 80,
        iters_per_epoch: int = 400,
        **options: Any,
    ) -> None:
        released = dict(options.get("model") or {}).get("preset") == "released"
        if released:
            options, kmeans = dict(init_checkpoint="best") | options, dict(n_init=3) | (kmeans or {})
        super().__init__(name, epochs=epochs, iters_per_epoch=iters_per_epoch, **options)
        check_counts(f"stage {name}", 1, num_clusters=num_clusters)
        self.num_clusters = num_clusters
        self.kmeans = kmeans or {}
        self.clusterer = clusterer
        self.reset_optimizer, self.compare_with_truth = reset_optimizer, compare_with_truth
        self.augmentation = dict(erasing=0.5) | (dict(released=True) if released else {}) | self.augmentation

    def check(self, cfg: Config, earlier: Sequence[str]) -> None:
        """See :class:`ReIDStage`. Raises VisionKitError also where there are fewer images than clusters."""
        if self.init_from is None:
            raise VisionKitError(
                f"stage {self.name}: has no init_from; expected the stage that trained on the source, or a checkpoint"
            )
        if "num_classes" in self.model:
            raise VisionKitError(f"stage {self.name}, model: num_classes is num_clusters of the stage; set that")
        if "num_clusters" in self.kmeans:
            raise VisionKitError(f"stage {self.name}, kmeans: num_clusters is the stage's own; set that")
        super().check(cfg, earlier)
        clusterer = build(CLUSTERERS, self.clusterer or self._kmeans(VIEWS[0]), f"stage {self.name}, clusterer")
        images, wanted = len(build_dataset(self.train_data(cfg, "target"))), getattr(clusterer, "num_clusters", 1)
        if images < wanted:
            raise VisionKitError(
                f"stage {self.name}: num_clusters={wanted}, but the target has {images} training images; "
                "give about as many clusters as you expect identities"
            )

    def validated_on(self) -> str | None:
        """See :class:`ReIDStage`: the target, where there are labels to report on."""
        return "target" if self.val_interval and self.report and self.report_on == "target" else None

    def runner_cfg(self, context: Context) -> dict[str, Any]:
        """The Runner's config."""
        cfg = context.cfg
        views = VIEWS if self.model.get("local", True) else VIEWS[:1]
        dataset = dict(type="visionkit.PseudoLabelDataset", dataset=self.train_data(cfg, "target"))
        return dict(
            self.common_cfg(cfg),
            model=self.model_cfg(cfg, self.num_clusters),
            train_dataloader={view: self.train_loader(cfg, dataset) for view in views},
            custom_hooks=self._hooks(cfg, views),
            find_unused_parameters=True,
        )

    def model_cfg(self, cfg: Config, num_classes: int) -> dict[str, Any]:
        """The model's config."""
        backbone, model = _untrained(cfg["backbone"]), dict(self.model)
        if model.get("preset") != "released":
            model.setdefault("ema_limit", ema_limit(self.epochs * self.iters_per_epoch))
        return dict(type="visionkit.CoreReID", backbone=backbone, num_classes=num_classes, **model)

    def test_cfg(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        """See the base class; with SECAB where the weights have one: it is for training, descriptors are without."""
        cfg = super().test_cfg(context, state)
        secab = any(key.startswith("fusion.secab.") for key in state)
        return dict(cfg, model=dict(cfg["model"], secab=secab))

    def _hooks(self, cfg: Config, views: tuple[str, ...]) -> list[dict[str, Any]]:
        labels = dict(
            type="visionkit.PseudoLabelHook",
            clusterer={view: self.clusterer or self._kmeans(view) for view in views},
            transforms=test_transforms(cfg["image_size"]),
            batch_size=self.eval_batch,
            num_workers=cfg.get("workers", 0),
            reset_optimizer=self.reset_optimizer,
            compare_with_truth=self.compare_with_truth,
            max_clusters=self.num_clusters,
        )
        teacher = [dict(type="visionkit.MeanTeacherHook")] if self.model.get("mean_teacher", True) else []
        return [labels, *teacher]

    def _kmeans(self, view: str) -> dict[str, Any]:
        init_size = 1500 if view == "global_view" else 900
        settings = dict(num_clusters=self.num_clusters, init_size=init_size) | self.kmeans
        return dict(type="visionkit.KMeansLabels", **settings)


def _own_device() -> str:
    """Where this process will train: not all of torchrun's may take memory of the first GPU."""
    device = get_device()
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def _untrained(backbone: dict[str, Any]) -> dict[str, Any]:
    """The backbone without fetched weights: the source stage's follow."""
    backbone = plain(backbone)
    return {key: value for key, value in backbone.items() if key not in ("weights", "pretrained")}
