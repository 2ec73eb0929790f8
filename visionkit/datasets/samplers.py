"""Identity-balanced sampling for triplet losses."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from mmengine.dist import get_dist_info
from torch.utils.data import Dataset, Sampler

from visionkit.checks import check_counts
from visionkit.errors import VisionKitError
from visionkit.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class RandomMultipleGallerySampler(Sampler):
    """Per identity one random anchor and ``num_instances - 1`` more images, from other cameras where there are any.

    Identities come in a random order, each once per pass. The others are drawn without replacement when at least
    ``num_instances`` are there, else with. An identity of one image gives that one (Ge et al., MMT, ICLR 2020).

    The data set's ``pids`` and ``camids`` are read when a pass begins, so new pseudo-labels count at once. Randomness
    comes from torch's global generator. Under torch.distributed every rank takes its share of whole identities; the
    shares do not overlap if all ranks begin a pass with that generator in the same state, as our training loop has it.

    Args:
        dataset: Any data set with ``pids`` and ``camids`` lists; rows with pid -1 are left out.
        num_instances: Images per identity.
        seed: Not used; mmengine's Runner passes its own to every sampler.
    """

    def __init__(self, dataset: Dataset, num_instances: int = 4, seed: int | None = None) -> None:
        if num_instances < 2:
            raise VisionKitError(f"num_instances={num_instances}: a triplet needs at least 2 images of an identity")
        self.dataset, self.num_instances = dataset, num_instances

    def __len__(self) -> int:
        """Rows of a pass; under torch.distributed an even share, from which a rank's own may differ a little."""
        total = sum(self.num_instances if len(rows) > 1 else 1 for rows in self._rows_by_pid().values())
        return -(-total // get_dist_info()[1])

    def __iter__(self) -> Iterator[int]:
        rows = self._rows_by_pid()
        if not rows:
            raise VisionKitError("the sampler found no labelled image; set pseudo-labels before training starts")
        rank, world_size = get_dist_info()
        pids = sorted(rows)
        for position in torch.randperm(len(pids)).tolist()[rank::world_size]:
            yield from self._instances(rows[pids[position]])

    def _rows_by_pid(self) -> dict[int, list[int]]:
        rows = defaultdict(list)
        for row, pid in enumerate(self.dataset.pids):
            if pid >= 0:
                rows[pid].append(row)
        return rows

    def _instances(self, rows: list[int]) -> list[int]:
        camids = self.dataset.camids
        anchor = rows[int(torch.randint(len(rows), ()))]
        others = [row for row in rows if camids[row] != camids[anchor]] or [row for row in rows if row != anchor]
        if not others:
            return [anchor]
        wanted = self.num_instances - 1
        if len(others) >= self.num_instances:
            chosen = torch.randperm(len(others))[:wanted]
        else:
            chosen = torch.randint(len(others), (wanted,))
        return [anchor, *(others[i] for i in chosen.tolist())]


@DATA_SAMPLERS.register_module()
class RepeatedAugmentationSampler(Sampler):
    """A random order in which every image comes ``repeats`` times on end (Berman et al., arXiv 1902.05509).

    As in DeiT, a pass is as long as without repeats, so that with r repeats it shows a random 1/r of the images.
    Under torch.distributed copies of an image fall to different ranks.

    Args:
        dataset: Any data set.
        repeats: 1 gives a plain random order.
        seed: Not used; mmengine's Runner passes its own to every sampler.
    """

    def __init__(self, dataset: Dataset, repeats: int = 1, seed: int | None = None) -> None:
        check_counts("", 1, repeats=repeats)
        self.dataset, self.repeats = dataset, repeats

    def __len__(self) -> int:
        """Rows of a rank's pass."""
        rank, world_size = get_dist_info()
        return len(range(rank, len(self.dataset), world_size))

    def __iter__(self) -> Iterator[int]:
        rank, world_size = get_dist_info()
        order = torch.randperm(len(self.dataset)).repeat_interleave(self.repeats)[: len(self.dataset)]
        return iter(order[rank::world_size].tolist())
