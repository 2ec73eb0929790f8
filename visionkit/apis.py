"""The few lines that a Python user types."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionkit.checks import check_counts
from visionkit.devices import choose_device
from visionkit.errors import VisionKitError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from visionkit.reid.gallery import GalleryIndex, Match

    Images = str | os.PathLike | Image | Sequence[str | os.PathLike | Image]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name != "NVSInferencer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from visionkit.nvs.inferencer import NVSInferencer

    return NVSInferencer


class ReIDInferencer:
    """Features and rankings by a trained re-identification model.

    >>> reid = ReIDInferencer("work_dirs/market2duke/target/best.pth")
    >>> reid.rank("query.jpg", "gallery/")[0]
    Match(path='gallery/0005_c2_f0046985.jpg', distance=0.41)

    Args:
        weights_or_model: a checkpoint of `visionkit train`, which holds all that is needed, a file of the released
            CORE-ReID (either stage), or a model with ``extract(images (B, 3, H, W)) -> (B, D)``.
        device: ``"auto"`` takes a GPU if there is one.
        image_size: (height, width) that images are resized to; by default what the checkpoint says, else (256, 128).
        batch_size: images at a time.
        num_workers: processes that read images.

    Raises:
        VisionKitError: the checkpoint cannot be read, or does not describe its model, or the model has no ``extract``,
            or another option is wrong.
    """

    def __init__(
        self,
        weights_or_model: "str | os.PathLike | torch.nn.Module",
        device: str = "auto",
        image_size: tuple[int, int] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        import torch

        from visionkit.datasets.images import is_size
        from visionkit.reid.rebuild import IMAGE_SIZE, model_name, rebuild

        check_counts("", 1, batch_size=batch_size)
        check_counts("", 0, num_workers=num_workers)
        if image_size is not None and not is_size(image_size):
            raise VisionKitError(f"image_size={image_size!r}: expected (height, width) in pixels")
        if not isinstance(weights_or_model, (str, os.PathLike, torch.nn.Module)):
            raise VisionKitError(f"weights_or_model={weights_or_model!r}: expected a checkpoint file or a model")
        self.weights = "" if isinstance(weights_or_model, torch.nn.Module) else os.path.abspath(weights_or_model)
        if self.weights:
            model, own_size = rebuild(weights_or_model)
        else:
            model, own_size = weights_or_model.eval(), IMAGE_SIZE
        if not hasattr(model, "extract"):
            raise VisionKitError(
                f"{type(model).__name__}: expected a model with extract(images (B, 3, H, W)) -> (B, D)"
            )
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self.model_name = model_name(model)
        self.image_size = tuple(image_size or own_size)
        self.batch_size, self.num_workers = batch_size, num_workers

    def features(self, images: "Images") -> "np.ndarray":
        """L2-normalised features (N, D) float32.

        Args:
            images: an image file, a folder (all images below it, sorted by path), a PIL image, or a list of them.

        Raises:
            VisionKitError: an image cannot be read, or there is none.
        """
        import numpy as np

        return np.concatenate([part for _, part in self.batches(as_list(images))])

    def batches(self, images: Sequence, skip: bool = False) -> "Iterator[tuple[list, Any]]":
        """Batches of (images, features (B, D) float32).

        Args:
            images: files or PIL images.
            skip: warn about a file that cannot be read and leave it out, instead of an error.
        """
        import torch
        from torch.utils.data import DataLoader

        loader = DataLoader(
            _Images(images, self.image_size, skip),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_stack,
            worker_init_fn=_start_worker,
        )
        for numbers, batch in loader:
            if len(numbers):
                with torch.inference_mode():
                    features = torch.nn.functional.normalize(self.model.extract(batch.to(self.device)).float())
                yield [images[i] for i in numbers], features.cpu().numpy()

    def rank(
        self, query: "Images", gallery: "Images | GalleryIndex", topk: int = 10
    ) -> "list[Match] | list[list[Match]]":
        """The gallery's images nearest to a query, with their Euclidean distances (0 to 2), nearest first.

        Args:
            query: an image, or a folder or list of them.
            gallery: a folder of images or a list of them, an index, or an index's folder.
            topk: number of images to return.

        Returns:
            A list for one image, a list of lists for several.

        Raises:
            VisionKitError: an empty gallery, an unreadable image, an index of another model.
        """
        answers = self.as_index(gallery).search(self.features(query), topk, device=self.device)
        return answers[0] if is_one(query) else answers

    def as_index(self, gallery: "Images | GalleryIndex") -> "GalleryIndex":
        """The index of images, or the index that is given or lies in the folder, if it is this model's."""
        from visionkit.reid.gallery import GalleryIndex
        from visionkit.reid.gallery_files import holds_index

        if isinstance(gallery, GalleryIndex):
            gallery.check_model(self.model_name)
            return gallery
        in_folder = isinstance(gallery, (str, os.PathLike)) and holds_index(gallery)
        return self.load_index(gallery) if in_folder else self.index(gallery)

    def index(self, images: "Images") -> "GalleryIndex":
        """An index, in memory, of an image folder or a list of files."""
        from visionkit.reid.gallery import GalleryIndex
        from visionkit.reid.gallery_files import stamp_of

        index = GalleryIndex(self.model_name, self.weights)
        files = as_list(images)
        stamps = [stamp_of(file) for file in files]
        index.add(self.features(files), [str(file) for file in files], stamps)
        return index

    def save_index(self, index: "GalleryIndex", folder: str | os.PathLike) -> Path:
        """Write an index; one that was loaded from there only adds what is new.

        Raises:
            VisionKitError: the folder cannot be written, holds another index, or another process writes to it.
        """
        from visionkit.reid.gallery_files import writing

        index.check_model(self.model_name)
        index.make_absolute()  # a path that holds from everywhere, as `visionkit index` writes them
        with writing(folder):
            return index.save(folder)

    def load_index(self, folder: str | os.PathLike) -> "GalleryIndex":
        """Open an index that this model made; another model's is refused."""
        from visionkit.reid.gallery import GalleryIndex

        return GalleryIndex.load(folder, self.model_name)


def is_one(images: "Images") -> bool:
    """Whether this is one image, not a folder or a list."""
    if isinstance(images, (str, os.PathLike)):
        return not Path(images).is_dir()
    return not isinstance(images, (list, tuple))


def as_list(images: "Images") -> list:
    """Files of a folder, or what was given as a list.

    Raises:
        VisionKitError: no image, a folder without any, or neither a path nor a PIL image.
    """
    from PIL.Image import Image

    if isinstance(images, (str, os.PathLike)):
        images = files_below(images) if Path(images).is_dir() else [images]
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if not images:
        raise VisionKitError("no images: give at least one file")
    for image in images:
        if not isinstance(image, (str, os.PathLike, Image)):
            raise VisionKitError(f"images: expected paths or PIL images, got {type(image).__name__}; convert it to one")
    return list(images)


def files_below(folder: str | os.PathLike) -> list[str]:
    """All image files in a folder and below it, see [visionkit.datasets.images.images_below].

    Raises:
        VisionKitError: there is none, or a folder cannot be read.
    """
    from visionkit.datasets.images import IMAGE_SUFFIXES, images_below

    found = images_below(folder)
    if not found:
        raise VisionKitError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)}); check the folder")
    return found


class _Images:
    """A data set of files and PIL images: (place, tensor), or (place, None) for a file that is skipped."""

    def __init__(self, images: Sequence, image_size: tuple[int, int], skip: bool) -> None:
        from visionkit.datasets.transforms import build_transforms, test_transforms

        self.images, self.skip = images, skip
        self.transforms = build_transforms(test_transforms(image_size))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple:
        from visionkit.datasets.images import to_picture

        try:
            image = to_picture(self.images[place])
        except VisionKitError as error:
            if not self.skip:
                raise
            print(f"skipped: {error}", flush=True)
            return place, None
        for transform in self.transforms:
            image = transform(image)
        return place, image


def _stack(items: list[tuple]) -> tuple:
    import torch

    kept = [(place, image) for place, image in items if image is not None]
    return [place for place, _ in kept], torch.stack([image for _, image in kept]) if kept else None


def _start_worker(worker_id: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach every process of a job, to the process that uses the features."""
    from visionkit.engine.workers import start_worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_worker(worker_id)
