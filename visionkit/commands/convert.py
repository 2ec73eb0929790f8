"""Turn a published backbone checkpoint into safetensors under our names.

visionkit convert mavit_tiny MAViT_T.pth mavit_tiny.safetensors
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit convert``."""
    parser.add_argument("model", help="its name: mavit_*, soft_*, soft_norm_* or nalaformer_*")
    parser.add_argument("checkpoint", help="the published .pth file (or a .safetensors one)")
    parser.add_argument("output", help="the .safetensors file to write")


def run(options: argparse.Namespace) -> int:
    """Check every weight against the architecture, then write."""
    import importlib

    import timm
    from safetensors.torch import save_file

    import visionkit.backbones  # noqa: F401  (registers the models)
    from visionkit.engine.checkpoints import load_checkpoint
    from visionkit.errors import VisionKitError

    ours = sorted(name for family in ("mavit", "nalaformer", "soft") for name in timm.list_models(f"{family}_*"))
    if options.model not in ours:
        raise VisionKitError(f"{options.model}: not a backbone of ours; expected one of {', '.join(ours)}")
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise VisionKitError(f"{output}: expected a name that ends in .safetensors")
    family = importlib.import_module(f"visionkit.backbones.{options.model.split('_')[0]}")
    from visionkit.backbones.published import unwrap

    state = unwrap(load_checkpoint(options.checkpoint))
    arch = family.options_of(state) if hasattr(family, "options_of") else {}
    classes = state["head.bias"].shape[0] if "head.bias" in state else 1000
    model = timm.create_model(options.model, num_classes=classes, **arch)
    try:
        weights = family.checkpoint_filter_fn(state, model)
    except VisionKitError as error:
        raise VisionKitError(f"{options.checkpoint}: {error}") from error
    model.load_state_dict(weights)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, beside)
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)
    print(f"{output}: {options.model}, {len(weights)} tensors")
    return 0
