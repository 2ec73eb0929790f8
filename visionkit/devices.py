"""Where to compute."""

from visionkit.errors import VisionKitError


def choose_device(device: str) -> str:
    """The device's name; ``"auto"`` is a GPU if there is one. Raises VisionKitError for one that is not available."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise VisionKitError(f"device={device!r}: is not available on this machine; use auto, cpu or cuda") from error
    return device
