"""Run a whole detector or segmenter of OpenMMLab on one of our backbones: a training step and a prediction.

  python -m venv mm && mm/bin/pip install . mmdet mmsegmentation ftfy "setuptools<81"
  mm/bin/pip install --no-build-isolation "mmcv-lite<2.2"
  mm/bin/python tools/run_openmmlab.py                              # all of configs/mmdet and configs/mmseg
  mm/bin/python tools/run_openmmlab.py configs/mmdet/mask_rcnn_mavit_tiny_1x_coco.py --size 256

mmcv's own operators must be compiled: `pip install --no-build-isolation --no-binary mmcv "mmcv<2.2"` in place of
mmcv-lite, about 25 minutes on two cores. Without them this script puts torchvision's NMS and RoIAlign in their place,
which is all that these models call. Data are made up: random images, two boxes with masks each.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor

from visionkit.cli import Parser, run_command
from visionkit.errors import VisionKitError

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "configs", nargs="*", type=Path, help="config files (default: all of configs/mmdet and configs/mmseg)"
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the made-up images (default: 256)")
    parser.add_argument("--steps", type=int, default=3, help="training steps (default: 3)")
    return run_command(run, parser.parse_args())


def run(options: argparse.Namespace) -> int:
    """One line for each config."""
    MMLogger.get_current_instance().setLevel("WARNING")
    files = options.configs or sorted([*ROOT.glob("configs/mmdet/*.py"), *ROOT.glob("configs/mmseg/*.py")])
    operators = "mmcv's operators" if provide_operators() else "torchvision's NMS and RoIAlign"
    print(f"torch {torch.__version__}, with {operators}")
    for file in files:
        print(f"{file.name}: {run_one(file, options.size, options.steps)}", flush=True)
    return 0


def provide_operators() -> bool:
    """Makes mmcv.ops importable. Returns whether they are mmcv's own."""
    try:
        importlib.import_module("mmcv")
    except ImportError as error:
        raise VisionKitError(f"mmcv is not installed ({error}); see --help for the steps") from error
    try:
        importlib.import_module("mmcv._ext")
        return True
    except ImportError:
        module = _StandIn("mmcv._ext")
        module.__spec__ = ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = module
        return False


class _StandIn(types.ModuleType):
    """mmcv's compiled module with the two operators that detectors need; any other says so when it is called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> None:
            raise VisionKitError(f"mmcv's operator {name} is not compiled; see --help for the steps")

        return {"nms": _nms, "roi_align_forward": _roi_align}.get(name, missing)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    from torchvision.ops import nms

    return nms(boxes, scores, iou_threshold)


def _roi_align(input: Tensor, rois: Tensor, output: Tensor, *_: Tensor, **options: object) -> None:  # noqa: A002
    from torchvision.ops import roi_align

    size, scale = (options["aligned_height"], options["aligned_width"]), options["spatial_scale"]
    output.copy_(roi_align(input, rois, size, scale, options["sampling_ratio"], options["aligned"]))


def run_one(file: Path, size: int, steps: int) -> str:
    """Builds a config's model, trains it for some steps and lets it predict."""
    torch.manual_seed(0)
    cfg = Config.fromfile(file)
    library = file.parent.name
    detects = library == "mmdet"
    importlib.import_module(f"{library}.models")
    init_default_scope(library)
    for part in ("roi_head", "rpn_head", "bbox_head"):
        use_torchvision(cfg.model.get(part, {}))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    optimizer = Runner.build_optim_wrapper(types.SimpleNamespace(model=model), cfg.optim_wrapper)
    samples = [sample(detects, size, seed) for seed in range(2)]
    batch = dict(inputs=[image for image, _ in samples], data_samples=[target for _, target in samples])
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        losses.append(float(model.train().train_step(batch, optimizer)["loss"]))
    seconds = (time.perf_counter() - start) / steps
    with torch.no_grad():
        predicted = model.eval().test_step(batch)
    parameters = sum(each.numel() for each in model.parameters()) / 1e6
    if not all(map(math.isfinite, losses)):
        raise VisionKitError(f"{file}: the loss is not finite: {losses}")
    found = f"{len(predicted[0].pred_instances)} boxes" if detects else f"map {tuple(predicted[0].pred_sem_seg.shape)}"
    change = " -> ".join(f"{loss:.2f}" for loss in losses)
    return f"{parameters:.1f} M parameters, loss {change}, {seconds:.1f} s a step, predicted {found}"


def use_torchvision(cfg: dict) -> None:
    """RoIAlign layers call torchvision where mmcv's gradient is not compiled."""
    for key, value in cfg.items():
        if key == "roi_layer" and "mmcv._ext" in sys.modules and isinstance(sys.modules["mmcv._ext"], _StandIn):
            value["use_torchvision"] = True
        elif isinstance(value, dict):
            use_torchvision(value)


def sample(detects: bool, size: int, seed: int) -> tuple[Tensor, object]:
    """A made-up image (3, size, size) of 8 bits with what the library wants to know of it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator)
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size), scale_factor=(1.0, 1.0))
    if not detects:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        target = SegDataSample(metainfo=shape)
        target.gt_sem_seg = PixelData(data=torch.randint(150, (1, size, size), generator=generator))
        return image, target
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[10.0, 10, size / 2, size / 2], [size / 3, size / 4, size - 9, size - 20]])
    masks = np.zeros((2, size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    target = DetDataSample(metainfo=dict(shape, img_id=seed, batch_input_shape=(size, size)))
    target.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 17]), masks=BitmapMasks(masks, size, size))
    return image, target


if __name__ == "__main__":
    sys.exit(main())
