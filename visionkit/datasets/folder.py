"""A user's own crops: identity and camera from a pattern on the path."""

import hashlib
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from visionkit.datasets.base import SPLITS, ReIDDataset, Sample
from visionkit.datasets.images import images_below
from visionkit.errors import VisionKitError
from visionkit.registry import DATASETS

# only at the top may a camera be a bare number: anna_2_17.jpg; in hall/door_00.jpg it would be a frame's
PATTERN = r"""(?x) ^ (?:(?P<below>.+)/)?? (?P<pid>[^/_]+)
    (?: / (?:cam(?:era)?|c)_? | _ (?(below) (?:cam(?:era)?|c)_? | (?:(?:cam(?:era)?|c)_?)?) ) (?P<camid>\d+) [^/]* $"""


@DATASETS.register_module()
class FolderReID(ReIDDataset):
    """Crops in any folder. Sub-folders ``train``, ``query`` and ``gallery`` are the splits; without them the identities
    are divided at random by a seed:

    - ``train``: all images of a share of the identities;
    - ``query``: of each other identity that two or more cameras saw, one image per camera, but none that would leave
      no image of another camera to be found;
    - ``gallery``: all other images of these other identities.

    The order is a hash of seed and name, so few identities change sides when new ones are added.

    Identities and cameras may be words or numbers. Numbers are kept if all are numbers, cameras then counting from 1
    as everywhere in file names; identity -1 is junk, and 0 one like any other. Words are numbered in sorted order over
    the whole tree.

    Args:
        pattern: Regular expression with the groups ``pid`` and ``camid``, searched in the path relative to the root
            or the split's folder, written with "/". The default reads ``0002_c1s1_000451.jpg``, ``anna/cam2_17.jpg``
            and ``anna_2_17.jpg``.
        train_share: Share of the identities that train, when there are no sub-folders.
        seed: Seed of the division into train and test identities, when there are no sub-folders.
        args, kwargs: See :class:`ReIDDataset`.
    """

    card = "folder_reid"
    listed = False

    def __init__(
        self, *args: Any, pattern: str = PATTERN, train_share: float = 0.5, seed: int = 0, **kwargs: Any
    ) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise VisionKitError(f"FolderReID: pattern={pattern!r} is no regular expression ({error})") from error
        if not {"pid", "camid"} <= set(self.pattern.groupindex):
            raise VisionKitError(
                f"FolderReID: pattern={pattern!r}: expected the groups (?P<pid>...) and (?P<camid>...)"
            )
        if not 0 < train_share < 1:
            raise VisionKitError(f"FolderReID: train_share={train_share!r}: expected a number between 0 and 1")
        self.train_share, self.seed = train_share, seed
        super().__init__(*args, **kwargs)

    def find_root(self, root: Path) -> Path:
        """``root`` itself; its tree is the three sub-folders once one of them is there, else nothing."""
        in_splits = any((root / split).is_dir() for split in SPLITS)
        if not in_splits and root.is_dir():
            self._check_case(root)
        self.folders = {split: split for split in SPLITS} if in_splits else {}
        return super().find_root(root)

    def _check_case(self, root: Path) -> None:
        """Train/ is meant as train/; taken for identities it would be divided once more."""
        for path in root.iterdir():
            if path.name.lower() in SPLITS and path.is_dir():
                raise VisionKitError(f"{path}: is no split's name; rename it to {path.name.lower()}")

    def _where_from(self) -> str:
        tree = "all in one tree, whose query and gallery are of identities that two cameras saw"
        return f"expected crops in train/, query/ and gallery/, or {tree}; see datasets/folder_reid.md"

    def scan(self, split: str) -> list[Sample]:
        """Rows of one split, numbered over the whole tree."""
        if self.folders:
            found = {name: self._find(self.root / name) for name in SPLITS}
        else:
            found = {"all": self._find(self.root)}
        pids = _numbers([pid for rows in found.values() for _, pid, _ in rows], first=0)
        cameras = _numbers([cam for rows in found.values() for _, _, cam in rows], first=1)
        samples = {
            name: [Sample(path, pids[pid], cameras[cam]) for path, pid, cam in rows] for name, rows in found.items()
        }
        if self.folders:
            if split == "query":
                self._warn_of_shared(samples)
            return samples[split]
        return self._divide(samples["all"], {number: word for word, number in pids.items()})[split]

    def _warn_of_shared(self, samples: dict[str, list[Sample]]) -> None:
        train, query = ({sample.pid for sample in samples[split]} - {-1} for split in ("train", "query"))
        if shared := train & query:
            warnings.warn(
                f"FolderReID: {len(shared)} of {len(query)} identities in {self.root / 'query'} are in train, too; "
                "scores will be too good, move them out of one",
                stacklevel=5,
            )

    def _find(self, folder: Path) -> list[tuple[str, str, str]]:
        rows = []
        for path in images_below(folder):
            match = self.pattern.search(Path(path).relative_to(folder).as_posix())
            if match is None or match["pid"] is None or match["camid"] is None:
                raise VisionKitError(
                    f"{path}: the pattern finds no identity and camera in it; give one, see datasets/{self.card}.md"
                )
            rows.append((path, match["pid"], match["camid"]))
        return rows

    def _divide(self, samples: list[Sample], names: dict[int, str]) -> dict[str, list[Sample]]:
        samples = [sample for sample in samples if sample.pid != -1]
        pids = sorted({sample.pid for sample in samples}, key=lambda pid: self._chance(names[pid]))
        train = set(pids[: round(self.train_share * len(pids))])
        of_identity = defaultdict(lambda: defaultdict(list))  # pid -> camid -> its test images
        for sample in samples:
            if sample.pid not in train:
                of_identity[sample.pid][sample.camid].append(sample)
        queries = {sample for cameras in of_identity.values() for sample in self._queries(list(cameras.values()))}
        splits = {split: [] for split in SPLITS}
        for sample in samples:
            splits["train" if sample.pid in train else "query" if sample in queries else "gallery"].append(sample)
        return splits

    def _queries(self, cameras: list[list[Sample]]) -> list[Sample]:
        """Queries of one identity whose images are given by camera: those that find an image of another camera."""
        most = max(range(len(cameras)), key=lambda number: len(cameras[number]))
        others = cameras[:most] + cameras[most + 1 :]
        asking = cameras if any(len(rows) > 1 for rows in others) else others
        return [min(rows, key=lambda sample: self._chance(Path(sample.path).name)) for rows in asking]

    def _chance(self, name: str) -> str:
        return hashlib.sha256(f"{self.seed}/{name}".encode("utf-8", "surrogateescape")).hexdigest()


def _numbers(words: list[str], first: int) -> dict[str, int]:
    """Numbers for words: their own value less ``first`` where all are 64-bit numbers, else 0..n-1 in sorted order."""
    numeric = all(re.fullmatch(r"-?\d+", word) for word in words)
    if numeric and all(abs(int(word)) < 1 << 63 for word in words):
        return {word: int(word) - first for word in words}
    values = sorted({int(word) if numeric else word for word in words})
    order = {value: number for number, value in enumerate(values)}
    return {word: order[int(word) if numeric else word] for word in words}
