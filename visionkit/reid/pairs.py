"""Training of a Siamese embedder from pairs that occur together, without identities.

Multiple-negatives ranking loss: Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017,
arXiv 1705.00652. That co-occurrence makes the pairs: VacancySBERT (Bocharova et al., 2023, arXiv 2307.16638), where
titles and skills of one vacancy are a pair; here two images of one tracklet are (same camera, same pass).
"""

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multiple_negatives_loss(anchors: Tensor, positives: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy of finding each anchor's partner among the partners of all others.

    -log softmax_j(scale · cos(a_i, p_j)) at j = i, mean over i, then the mean of that and the same with a and p
    exchanged.

    Args:
        anchors: (B, D).
        positives: (B, D), row i the partner of row i.
        scale: inverse temperature of the cosines.
    """
    logits = scale * F.normalize(anchors, dim=-1) @ F.normalize(positives, dim=-1).mT
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


class CoOccurrence:
    """Draws pairs of items that share a key.

    Args:
        keys: key of each item, the tracklet that it occurs in for instance; an item alone with its key is in no pair.
    """

    def __init__(self, keys: Sequence[Hashable]) -> None:
        members: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            members.setdefault(key, []).append(index)
        self.groups = [torch.tensor(items) for items in members.values() if len(items) > 1]

    def __len__(self) -> int:
        """Number of keys with at least two items."""
        return len(self.groups)

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Indices (count,) of anchors and of their partners, each pair of another key while there are enough."""
        order = torch.randperm(len(self.groups), generator=generator)[:count]
        pairs = [
            items[torch.randperm(len(items), generator=generator)[:2]] for items in (self.groups[i] for i in order)
        ]
        return tuple(torch.stack(pairs).unbind(1))
