"""Turn a published backbone checkpoint into safetensors with the key names of visionkit.

visionkit convert mavit_tiny MAViT_T.pth mavit_tiny.safetensors
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from visionkit.errors import VisionKitError
from visionkit.files import beside, cannot_write

if TYPE_CHECKING:
    from torch import Tensor, nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit convert``."""
    parser.add_argument("model", help="the model's name: mavit_*, soft_*, soft_norm_* or nalaformer_*, as mavit_tiny")
    parser.add_argument("checkpoint", help="the published .pth file (or a .safetensors one)")
    parser.add_argument("output", help="the .safetensors file to write")


def run(options: argparse.Namespace) -> int:
    """Check every weight against the architecture, then write."""
    import timm

    import visionkit.backbones  # noqa: F401  (registers the models)
    from visionkit.backbones.published import sizes_of, unwrap
    from visionkit.engine.checkpoints import load_checkpoint, load_exactly

    ours = sorted(name for family in ("mavit", "nalaformer", "soft") for name in timm.list_models(f"{family}_*"))
    if options.model not in ours:
        raise VisionKitError(f"{options.model}: not a backbone of visionkit; expected one of {', '.join(ours)}")
    output = Path(options.output)
    if output.suffix != ".safetensors":
        raise VisionKitError(f"{output}: expected a name that ends in .safetensors")
    if output.is_dir():
        raise VisionKitError(f"{output}: is a folder; expected the name of the file to write")
    family = importlib.import_module(f"visionkit.backbones.{options.model.split('_')[0]}")
    state = unwrap(load_checkpoint(options.checkpoint), options.checkpoint)
    arch = family.options_of(options.model, state) if hasattr(family, "options_of") else {}
    model = timm.create_model(options.model, **sizes_of(state), **arch)
    try:
        weights = family.checkpoint_filter_fn(state, model)
    except VisionKitError as error:
        raise VisionKitError(f"{options.checkpoint}: {error}") from error
    lacking = not_given(weights, model)
    load_exactly(model, weights, Path(options.checkpoint))
    given = {key: value for key, value in model.state_dict().items() if key.split(".")[0] not in lacking}
    write(given, output)
    print(f"{output}: {options.model}, {len(given)} tensors")
    if lacking:
        print(f"{options.checkpoint} has no {', '.join(lacking)}, as a detector's backbone; {output} has none either")
    return 0


def not_given(weights: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the model's parts that stand in ``weights`` as they are in the model, for a file lacked them."""
    own = model.state_dict()
    same = [key for key, value in weights.items() if value.data_ptr() == own[key].data_ptr()]
    return sorted({key.split(".")[0] for key in same if not key.endswith("num_batches_tracked")})


def write(weights: dict[str, Tensor], output: Path) -> None:
    """Write a whole file or none. Raises VisionKitError where that fails."""
    from safetensors.torch import save

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(output, error) from error
    with beside(output) as temporary:
        temporary.write_bytes(save(weights))
