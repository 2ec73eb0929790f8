"""Crops of a site where nobody has said who is who."""

from pathlib import Path
from typing import Any

from visionkit.datasets.base import ReIDDataset, Sample
from visionkit.datasets.images import images_below
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS


@DATASETS.register_module()
class UnlabelledFolder(ReIDDataset):
    """All images in a folder and below it, to adapt to. What lies in one sub-folder of the root is of one camera;
    images in the root itself are of a camera of their own.

    There is a train split alone, in which every image has the identity 0: ``TargetFinetuning`` gives its own labels.

    Args:
        args, kwargs: See :class:`ReIDDataset`.
    """

    card = "unlabelled_folder"
    listed = False

    def __init__(self, root: Any, split: str, *args: Any, **kwargs: Any) -> None:
        if split != "train":
            raise VisionKitError(
                f"UnlabelledFolder: {root} has no identities to test on; give its stages report=None, "
                'or report_on="source"'
            )
        super().__init__(root, split, *args, **kwargs)

    def _where_from(self) -> str:
        return f"expected crops in it or in a sub-folder for each camera; see datasets/{self.card}.md"

    def scan(self, split: str) -> list[Sample]:
        """All images, cameras numbered by the sorted names of the root's sub-folders."""
        paths = [Path(path) for path in images_below(self.root)]
        places = [path.relative_to(self.root).parts[:-1][:1] for path in paths]
        cameras = {place: number for number, place in enumerate(sorted(set(places)))}
        return [Sample(str(path), 0, cameras[place]) for path, place in zip(paths, places)]
