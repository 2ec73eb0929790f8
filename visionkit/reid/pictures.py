"""Pictures of a ranking: sheets of ranked lists, and a map of the feature space."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from visionkit.datasets.images import read_image, resize
from visionkit.errors import VisionKitError
from visionkit.files import beside
from visionkit.reid.distances import BlockDistances, Features

Row = tuple[str, int, int]  # path, pid, 0-based camid: a visionkit.datasets.Sample, for example

HEIGHT = 128  # of an image on a sheet; its width follows from the first query's shape
FRAME, GAP, HEAD, TEXT = 4, 8, 56, 15
SHOWN = 20  # identities of a projection
MISSING = (215, 215, 215)
RIGHT, WRONG, QUERY_FRAME, UNKNOWN = (30, 150, 70), (205, 50, 50), (40, 40, 40), (150, 150, 150)


class Ranked(NamedTuple):
    """A gallery image in a ranked list; ``right`` is None where identities are unknown."""

    path: str
    distance: float
    right: bool | None


class RankedList(NamedTuple):
    """A query, what to write under it, and its first gallery images, nearest first."""

    query: str
    caption: str
    gallery: list[Ranked]


def ranked_lists(
    query_features: Features,
    gallery_features: Features,
    query_rows: Sequence[Row],
    gallery_rows: Sequence[Row],
    num_queries: int = 8,
    topk: int = 10,
    use_cameras: bool = True,
) -> list[RankedList]:
    """The ranked lists of queries spread evenly over the query set, junk (same identity and camera) left out.

    Args:
        query_features: (Q, D).
        gallery_features: (G, D).
        query_rows: (path, pid, camid) of each query.
        gallery_rows: (path, pid, camid) of each gallery image.
        num_queries: number of queries to show.
        topk: number of gallery images for each query.
        use_cameras: False where cameras are not known: then no image of the query's identity is junk.
    """
    distances = BlockDistances(query_features, gallery_features)
    pids, camids = (np.array([row[column] for row in gallery_rows]) for column in (1, 2))
    lists = []
    for i in np.unique(np.linspace(0, len(query_rows) - 1, num_queries).astype(int)):
        path, pid, camid = query_rows[i][:3]
        row = distances(int(i), int(i) + 1)[0].clamp_min(0).sqrt().cpu().numpy()
        junk = pids == -1
        if use_cameras:
            junk |= (pids == pid) & (camids == camid)
        row[junk] = np.inf
        first = np.argsort(row, kind="stable")[: min(topk, int(np.isfinite(row).sum()))]
        ranked = [Ranked(gallery_rows[j][0], float(row[j]), bool(pids[j] == pid)) for j in first]
        lists.append(RankedList(path, f"id {pid}, cam {camid + 1}", ranked))
    return lists


def draw_ranked_lists(lists: Sequence[RankedList], path: str | Path, title: str = "") -> Path:
    """Draw a sheet: a row for each query, its gallery to the right, right ones framed green and wrong ones red.

    The place of a gallery image whose file is gone stays grey and says so.

    Args:
        lists: the lists, from :func:`ranked_lists`.
        path: image file to write (its ending gives the format).
        title: a line at the top.

    Returns:
        The path.

    Raises:
        VisionKitError: nothing to draw, or an image that cannot be read.
    """
    if not lists:
        raise VisionKitError(f"{path}: no ranked list to draw; give at least one query")
    columns = 1 + max(len(each.gallery) for each in lists)
    first = read_image(lists[0].query)
    cell = (min(max(round(HEIGHT * first.width / first.height), 64), 2 * HEIGHT), HEIGHT)
    step_x, step_y = cell[0] + 2 * FRAME + GAP, cell[1] + 2 * FRAME + TEXT + GAP
    left = 2 * GAP  # a wider gap parts the query from its list
    width = max(left + columns * step_x + 2 * GAP, 420)
    sheet = Image.new("RGB", (width, HEAD + len(lists) * step_y + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = _font(14), _font(10)
    draw.text((left, GAP), title or "Ranked lists", "black", font)
    _draw_legend(draw, (left, GAP + 24), {ranked.right for each in lists for ranked in each.gallery}, small)
    for number, each in enumerate(lists):
        y = HEAD + number * step_y
        _draw_cell(sheet, draw, (left, y), cell, each.query, QUERY_FRAME, each.caption, small)
        for place, ranked in enumerate(each.gallery):
            colour = UNKNOWN if ranked.right is None else RIGHT if ranked.right else WRONG
            x = left + (place + 1) * step_x + GAP
            _draw_cell(sheet, draw, (x, y), cell, ranked.path, colour, f"{place + 1}  {ranked.distance:.3f}", small)
    return _save(Path(path), sheet.save)


def draw_projection(
    features: np.ndarray, pids: Sequence[int], camids: Sequence[int], path: str | Path, title: str = ""
) -> Path:
    """Draw features on a plane (PCA, then t-SNE): once coloured by identity, once by camera.

    Of many identities the :data:`SHOWN` with most images are drawn.

    Args:
        features: (N, D).
        pids: (N,) identities or pseudo-labels; -1 (noise) is left out.
        camids: (N,), 0-based; the legend counts from 1, as the data sets' file names do.
        path: image file to write.
        title: a line above the picture.

    Raises:
        VisionKitError: fewer than four images to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    features, pids, camids = np.asarray(features), np.asarray(pids), np.asarray(camids)
    names, counts = np.unique(pids[pids != -1], return_counts=True)
    shown = np.sort(names[np.argsort(-counts, kind="stable")[:SHOWN]])
    at = np.flatnonzero(np.isin(pids, shown))
    if len(at) < 4:
        raise VisionKitError(f"{path}: {len(at)} images are too few for a projection; give at least 4 with an identity")
    points = project(features[at])
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or f"{len(at)} images of {len(shown)} identities")
    for axes, labels, name in zip(figure.subplots(1, 2), (pids[at], camids[at] + 1), ("identity", "camera")):
        _scatter(axes, points, labels, name)
    return _save(Path(path), lambda file, kind: figure.savefig(file, format=kind, dpi=110))


def project(features: np.ndarray) -> np.ndarray:
    """Points (N, 2) of features (N, D), always the same: PCA to at most 50 dimensions, then t-SNE."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if np.ptp(features, axis=0).max() == 0:
        return np.zeros((len(features), 2))  # of one and the same feature t-SNE would crash
    reduced = PCA(min(50, *features.shape), random_state=0).fit_transform(features)
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)


def _scatter(axes, points: np.ndarray, labels: np.ndarray, name: str) -> None:  # noqa: ANN001 - matplotlib's
    import matplotlib

    values = np.unique(labels)
    colours = matplotlib.colormaps["tab20" if len(values) > 10 else "tab10"]
    markers = "o^sDvP"  # colours repeat after twenty
    for number, value in enumerate(values):
        at = labels == value
        marker = markers[number // colours.N % len(markers)]
        axes.scatter(*points[at].T, s=16, color=colours(number % colours.N), marker=marker, label=str(value))
    axes.set(title=f"by {name}", xticks=[], yticks=[])
    if len(values) <= 20:
        axes.legend(
            title=name, fontsize="x-small", ncols=1 + len(values) // 11, loc="center left", bbox_to_anchor=(1, 0.5)
        )


def _font(size: int):  # noqa: ANN202 - PIL's
    """The one that matplotlib brings: Pillow's own has no accents, Greek or Cyrillic, which names of files have."""
    import matplotlib

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)  # a path from Pillow 10.2 on


def _draw_cell(sheet, draw, corner, cell, path, colour, caption, font) -> None:  # noqa: ANN001 - PIL's
    x, y = corner
    draw.rectangle((x, y, x + cell[0] + 2 * FRAME - 1, y + cell[1] + 2 * FRAME - 1), fill=colour)
    if os.path.exists(path):
        sheet.paste(resize(read_image(path), cell[1], cell[0]), (x + FRAME, y + FRAME))
    else:
        inside = (x + FRAME, y + FRAME, x + FRAME + cell[0] - 1, y + FRAME + cell[1] - 1)
        draw.rectangle(inside, fill=MISSING)
        draw.text((x + FRAME + cell[0] // 2, y + FRAME + cell[1] // 2), "missing", "black", font, anchor="mm")
    draw.text((x, y + cell[1] + 2 * FRAME + 2), caption, "black", font)


def _draw_legend(draw, corner, kinds, font) -> None:  # noqa: ANN001 - PIL's
    """What the frames mean, as far as there are such."""
    x, y = corner
    meanings = {None: (UNKNOWN, "found"), True: (RIGHT, "same identity"), False: (WRONG, "another identity")}
    for colour, text in ((QUERY_FRAME, "query"), *(meaning for kind, meaning in meanings.items() if kind in kinds)):
        draw.rectangle((x, y + 2, x + 10, y + 12), fill=colour)
        draw.text((x + 15, y), text, "black", font)
        x += 30 + int(draw.textlength(text, font))


def picture_format(path: str | Path) -> str:
    """The format that a picture's name asks for: ``"png"``, ``"jpeg"``, ``"webp"`` or ``"pdf"``.

    Raises:
        VisionKitError: the name ends otherwise.
    """
    kind = Path(path).suffix.lstrip(".").lower().replace("jpg", "jpeg")
    if kind not in ("png", "jpeg", "webp", "pdf"):
        raise VisionKitError(f"{path}: name a picture *.png, *.jpg, *.webp or *.pdf")
    return kind


def _save(path: Path, write: Callable[[BinaryIO, str], None]) -> Path:
    """Write beside, then rename; the format follows from the name's ending."""
    data = io.BytesIO()
    write(data, picture_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        temporary.write_bytes(data.getvalue())
    return path
