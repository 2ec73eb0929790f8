"""Distances between rows of features, made block by block so that no query x gallery matrix need exist."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from visionkit.errors import VisionKitError
from visionkit.ops.precision import full_precision

Features = Tensor | np.ndarray
DistanceFunction = Callable[[Tensor, Tensor], Tensor]

# Every product is made of tiles of the same shape, however the rows are shared between blocks and processes: the last
# bit of a matrix product depends on its shape, and a ranking must not.
GALLERY_TILE = 8192
BLOCK_BYTES = 16 << 20  # stays in the cache, and the allocator takes it again
LARGEST_BLOCK = 128 << 20


def rows(features: Features, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Read rows (stop - start, D) of features (N, D) as float32 (float64 stays) on ``device``.

    Features are a tensor, an array or a memory map, which are not copied: do not write to the rows.
    """
    part = as_tensor(features[start:stop])
    return part.to(device, part.dtype if part.dtype == torch.float64 else torch.float32)


def computed_type(features: Features) -> torch.dtype:
    """The type that :func:`rows` come in."""
    return rows(features, 0, 1).dtype


def as_tensor(array: Features) -> Tensor:
    """A tensor over the memory of an array, also of one that cannot be written to."""
    if isinstance(array, Tensor):
        return array.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a memory map is read-only; nothing here writes
        return torch.from_numpy(np.ascontiguousarray(array))


def default_device(features: Features) -> torch.device:
    """Where a tensor is, but for mps, which has no float64; for an array a GPU where there is one."""
    if isinstance(features, Tensor):
        return torch.device("cpu") if features.device.type == "mps" else features.device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_features(features: Features, name: str) -> None:
    """Refuse what is not a matrix with at least one row."""
    if features.ndim != 2:
        raise VisionKitError(f"{name}: expected a matrix (images, dimensions), got shape {tuple(features.shape)}")
    if len(features) == 0:
        raise VisionKitError(f"{name}: no images; check the folder or split that these features were made from")


def check_pair(query: Features, gallery: Features) -> None:
    """Refuse feature matrices that are empty or of different width."""
    check_features(query, "query features")
    check_features(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise VisionKitError(
            f"query features have {query.shape[1]} dimensions and gallery features {gallery.shape[1]}: "
            "extract both with the same model"
        )


def block_rows(num_gallery: int) -> int:
    """How many queries make one block of distances: about ``BLOCK_BYTES``, but enough for an efficient product."""
    row = 4 * num_gallery
    return max(16, BLOCK_BYTES // row // 16 * 16, min(256, LARGEST_BLOCK // row // 16 * 16))


class BlockDistances:
    """Distances of a block of queries to the whole gallery.

    Args:
        query: features (Q, D); tensor, array or memory map.
        gallery: features (G, D).
        metric: ``"euclidean"`` (squared, which ranks alike), ``"cosine"`` (1 - cosine), or a function of two tensors
            (B, D), (T, D) that returns (B, T).
        device: device to compute on; by default that of the query features, for arrays a GPU where there is one.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        metric: str | DistanceFunction = "euclidean",
        device: torch.device | str | None = None,
    ) -> None:
        check_pair(query, gallery)
        if not callable(metric) and metric not in ("euclidean", "cosine"):
            raise VisionKitError(f"metric: expected 'euclidean', 'cosine' or a function, got {metric!r}")
        self.device = torch.device(device or default_device(query))
        self.query, self.gallery, self.metric = query, _kept_on(self.device, gallery), metric
        self.shape = (len(query), len(gallery))
        self.dtype = torch.promote_types(computed_type(query), computed_type(gallery))
        self._buffer: Tensor | None = None
        self.squared_norms = None if callable(metric) else self._gallery_norms()

    def _gallery_norms(self) -> Tensor:
        parts = [self._tile(start).square().sum(1) for start in range(0, self.shape[1], GALLERY_TILE)]
        return torch.cat(parts)

    def _tile(self, start: int) -> Tensor:
        return rows(self.gallery, start, start + GALLERY_TILE, self.device).to(self.dtype)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Distances (stop - start, G). The tensor is overwritten by the next call."""
        query = rows(self.query, start, stop, self.device).to(self.dtype)
        out = self._out(len(query))
        for first in range(0, self.shape[1], GALLERY_TILE):
            tile = self._tile(first)
            self._fill(out[:, first : first + len(tile)], query, tile, first)
        return out

    def _out(self, num_rows: int) -> Tensor:
        if self._buffer is None or len(self._buffer) < num_rows:
            self._buffer = torch.empty(num_rows, self.shape[1], dtype=self.dtype, device=self.device)
        return self._buffer[:num_rows]

    def _fill(self, out: Tensor, query: Tensor, tile: Tensor, first: int) -> None:
        if callable(self.metric):
            out.copy_(self.metric(query, tile))
            return
        norms = self.squared_norms[first : first + len(tile)]
        with full_precision(query):
            product = query @ tile.T
        if self.metric == "cosine":
            scale = (query.square().sum(1, keepdim=True) * norms).sqrt().clamp_min(1e-12)
            torch.sub(1, product.div_(scale), out=out)
        else:
            torch.add(query.square().sum(1, keepdim=True), norms, out=out)
            out.sub_(product, alpha=2)


def _kept_on(device: torch.device, features: Features) -> Features:
    """On a GPU with room to spare the whole gallery moves there once, instead of a tile at a time for every block."""
    if device.type != "cuda" or isinstance(features, Tensor) and features.is_cuda:
        return features
    free, _ = torch.cuda.mem_get_info(device)
    size = computed_type(features).itemsize * features.shape[0] * features.shape[1]
    return rows(features, 0, len(features), device) if size < free // 2 else features
