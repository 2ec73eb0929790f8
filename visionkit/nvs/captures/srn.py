"""Objects as they were rendered for Scene Representation Networks: ``rgb/``, ``pose/`` and ``intrinsics.txt``."""

from pathlib import Path

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.nvs.captures.scene import Scene


def read_srn(folder: Path) -> Scene:
    """One object of ShapeNet-SRN. Images and poses are joined by their stem.

    Raises:
        VisionKitError: a file is missing or cannot be read.
    """
    images = {path.stem: path for path in (folder / "rgb").glob("*.png")}
    poses = {path.stem: path for path in (folder / "pose").glob("*.txt")}
    stems = sorted(set(images) & set(poses))
    if len(stems) < 2:
        raise VisionKitError(f"{folder}: expected rgb/*.png and pose/*.txt of the same names, found {len(stems)} pairs")
    try:
        lines = (folder / "intrinsics.txt").read_text().split("\n")
        focal, cx, cy = (float(value) for value in lines[0].split()[:3])
        height, width = (int(float(value)) for value in [line for line in lines[1:] if line.strip()][-1].split())
        c2w = np.stack([np.loadtxt(poses[stem]).reshape(4, 4)[:3] for stem in stems])
    except (OSError, ValueError, IndexError) as error:
        raise VisionKitError(f"{folder}: intrinsics.txt or a pose cannot be read ({error}); restore it") from error
    count = len(stems)
    return Scene(
        name=folder.name,
        names=tuple(images[stem].name for stem in stems),
        paths=tuple(images[stem] for stem in stems),
        K=np.tile(np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]), (count, 1, 1)),
        sizes=np.tile(np.array([height, width]), (count, 1)),
        c2w=c2w,
        distortion=np.zeros((count, 8)),
        points=np.zeros((0, 3)),
        visible=(np.zeros(0, int),) * count,
        skipped=tuple((name, "has no pose") for name in sorted(set(images) - set(poses))),
    )
