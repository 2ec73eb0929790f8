"""Show what is installed, which device and kernels will be used, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re

from visionkit.errors import VisionKitError

OPTIONAL = {
    "faiss-cpu": ("faiss", "faster exact neighbours and k-means, IVF and HNSW indexes"),
    "kornia": ("nvs", "SSIM of new views"),
    "nerfacc": ("nvs", "compositing along rays"),
    "pycolmap": ("nvs", "structure from motion for captures"),
    "trimesh": ("nvs", "points of nerfstudio's captures"),
    "av": ("nvs", "videos"),
    "pillow-heif": ("nvs", "HEIC photos"),
    "lpips": ("nvs", "the LPIPS loss and metric"),
    "viser": ("viewer", "the interactive viewer"),
    "triton": ("", "GPU kernels; it comes with torch on Linux"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``visionkit doctor`` has no options."""


def run(options: argparse.Namespace) -> int:
    """Print the tables; 1 when something required is missing."""
    from rich.console import Console
    from rich.table import Table

    table = Table("package", "version", "for", "how to get it", title="packages")
    missing = 0
    for name in required():
        version = installed_version(name)
        missing += version is None
        table.add_row(name, version or "[red]missing", "required", "" if version else f"pip install {name}")
    for name, (extra, purpose) in OPTIONAL.items():
        version = installed_version(name)
        how = "" if version else f'pip install "visionkit\\[{extra}]"' if extra else f"pip install {name}"
        table.add_row(name, version or "[yellow]not installed", purpose, how)
    machine = Table("what", "value", title="machine")
    for row in machine_rows():
        machine.add_row(*row)
    console = Console()
    console.print(table)
    console.print(machine)
    return 1 if missing else 0


def required() -> list[str]:
    """The distributions that visionkit cannot do without. Raises VisionKitError where it is not installed itself."""
    try:
        needs = importlib.metadata.requires("visionkit") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise VisionKitError("visionkit: is not installed; run `pip install .` in its folder") from error
    return [re.match(r"[\w.-]+", each)[0] for each in needs if "extra ==" not in each]


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; a GPU or headless build counts too."""
    for candidate in (name, name.replace("-cpu", "-gpu"), f"{name}-headless"):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def machine_rows() -> list[tuple[str, str]]:
    """What this machine offers and what visionkit will use."""
    rows = [("Python", platform.python_version()), ("CPU cores", str(os.cpu_count()))]
    if importlib.util.find_spec("torch") is None:
        return rows + [("device", "unknown: torch is missing")]
    import torch

    from visionkit.ops import dispatch

    if torch.cuda.is_available():
        rows += [("device", f"cuda ({torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} in all)")]
    elif torch.backends.mps.is_available():  # mmengine takes it
        rows += [("device", "mps in training; cpu elsewhere, unless --device mps is given")]
    else:
        rows += [("device", "cpu (no CUDA device is visible to torch)")]
    return [*rows, ("threads", str(torch.get_num_threads())), ("kernels", dispatch.explain())]
