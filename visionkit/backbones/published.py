"""Published checkpoints: unwrapping, and the check that a file is of the architecture that was asked for."""

from collections.abc import Mapping

from torch import Tensor, nn

from visionkit.errors import VisionKitError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def unwrap(checkpoint: Mapping) -> dict[str, Tensor]:
    """The weights inside the usual wrappers, without the prefixes that parallel training and detectors put before."""
    for key in WRAPPERS:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    if any(key.startswith("backbone.") for key in checkpoint):
        checkpoint = {key: value for key, value in checkpoint.items() if key.startswith("backbone.")}
    return {key.removeprefix("backbone.").removeprefix("module."): value for key, value in checkpoint.items()}


def complete(state: dict[str, Tensor], model: nn.Module, head: tuple[str, ...], may_differ: tuple[str, ...]) -> dict:
    """Check every entry against the model, and take the head from it where a file (a detector's) has none.

    Args:
        state: weights under our names.
        model: whose weights they are to be.
        head: prefixes of what a detector's file leaves out.
        may_differ: names whose shape timm adapts or leaves out itself (other channels or classes).

    Raises:
        VisionKitError: an entry is missing, left over or of another shape.
    """
    own = model.state_dict()
    without_head = not any(key.startswith(head) for key in state)
    for key, value in own.items():
        if key.endswith("num_batches_tracked") or (without_head and key.startswith(head)):
            state.setdefault(key, value)
        elif key not in state:
            raise VisionKitError(
                f"{type(model).__name__}: the checkpoint has nothing for {key}; give a file of this architecture"
            )
        elif state[key].shape != value.shape and key not in may_differ:
            raise VisionKitError(
                f"{type(model).__name__}: the checkpoint's {key} has shape {tuple(state[key].shape)}, expected "
                f"{tuple(value.shape)}; give a file of this architecture"
            )
    extra = [key for key in state if key not in own and not key.startswith(head)]
    if extra:
        raise VisionKitError(
            f"{type(model).__name__}: the checkpoint's {extra[0]} and {len(extra) - 1} more entries have no place; "
            "give a file of this architecture"
        )
    return state
