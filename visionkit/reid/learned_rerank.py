"""A learned re-ranker of the head of a ranked list, with several query-aware views of each candidate.

After MVP: Na et al., Multi-view-guided Passage Reranking with Large Language Models, 2025, arXiv 2509.07485, which
encodes each (query, passage) by a language model. Here query and candidate are image features, the encoder is one
transformer layer over [views, query, candidate], and the distance that made the list is added to the score with a
learned weight, so that an untrained re-ranker keeps the list (both inferred).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.ops.precision import full_precision


class Reranked(NamedTuple):
    """scores (B, K), higher is better; anchors (B, views, d)."""

    scores: Tensor
    anchors: Tensor


class ViewReranker(nn.Module):
    """Scores candidates by their agreement with one anchor for each view.

    The view tokens read query and candidate; what they become are the candidate's relevance vectors e_ik. The anchor
    a_k of view k is a learned query's attention over the list's e_ik. score_i = Σ_k a_k · e_ik / (views √d) +
    w cos(q, c_i).

    Args:
        features: width of the image features.
        dim: width of the encoder.
        views: number of views.
        heads: number of heads of the encoder's attention.
    """

    def __init__(self, features: int, dim: int = 64, views: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.kind = nn.Parameter(0.02 * torch.randn(2, dim))  # query or candidate
        self.views = nn.Parameter(0.5 * torch.randn(views, dim))
        self.encoder = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(dim)
        self.anchor_query = nn.Parameter(0.5 * torch.randn(views, dim))
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        self.cosine_weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, query: Tensor, candidates: Tensor) -> Reranked:
        """Query features (B, D) and those of their lists (B, K, D), in any order."""
        query, candidates = F.normalize(query, dim=-1), F.normalize(candidates, dim=-1)
        batch, length, width = candidates.shape
        pair = torch.stack([query[:, None].expand_as(candidates), candidates], dim=2) * width**0.5
        tokens = self.embed(pair) + self.kind
        views = self.views.expand(batch, length, -1, -1)
        encoded = self.encoder(torch.cat([views, tokens], dim=2).flatten(0, 1))
        e = self.norm(encoded[:, : len(self.views)]).unflatten(0, (batch, length))  # (B, K, views, d)
        attention = torch.einsum("vd,bkvd->bvk", self.anchor_query, self.key(e)) * e.shape[-1] ** -0.5
        anchors = torch.einsum("bvk,bkvd->bvd", attention.softmax(-1), self.value(e))
        agreement = torch.einsum("bvd,bkvd->bk", anchors, e) / (len(self.views) * e.shape[-1] ** 0.5)
        cosine = (candidates @ query[..., None])[..., 0]
        return Reranked(agreement + self.cosine_weight * cosine, anchors)


def listwise_loss(scores: Tensor, relevant: Tensor) -> Tensor:
    """Cross-entropy of softmax(scores) against an even share for each relevant candidate (ListNet).

    scores: (B, K); relevant: (B, K) booleans. Lists without a relevant candidate do not count.
    """
    found = relevant.any(-1)
    if not found.any():
        return 0.0 * scores.sum()
    share = relevant[found] / relevant[found].sum(-1, keepdim=True)
    return -(share * scores[found].log_softmax(-1)).sum(-1).mean()


def orthogonality_loss(anchors: Tensor) -> Tensor:
    """Mean squared cosine between the anchors of different views, 0 for one view: (B, views, d) -> ()."""
    views = anchors.shape[1]
    if views == 1:
        return 0.0 * anchors.sum()
    unit = F.normalize(anchors, dim=-1)
    squared = (unit @ unit.mT).square()
    return (squared.sum() - squared.diagonal(dim1=1, dim2=2).sum()) / (len(anchors) * views * (views - 1))


@torch.no_grad()
def rerank_with(model: ViewReranker, query: Tensor, gallery: Tensor, length: int = 50) -> Tensor:
    """Distances (Q, G) in which the first ``length`` candidates of each query are in the model's order.

    The other candidates keep their distance, squared Euclidean of normalised features, and come after. All are float32
    at least.

    Args:
        model: a re-ranker in eval mode.
        query: (Q, D).
        gallery: (G, D).
        length: candidates re-ranked.
    """
    query, gallery = F.normalize(query, dim=-1), F.normalize(gallery, dim=-1)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with full_precision(query):
        distances = 2 - 2 * query.to(dtype) @ gallery.to(dtype).mT
    head = distances.topk(min(length, len(gallery)), largest=False).indices
    for rows in torch.arange(len(query)).split(64):
        scores = model(query[rows], gallery[head[rows]]).scores
        place = scores.argsort(-1, descending=True).argsort(-1)
        # all original distances are at least 0: places -1 < ... stay in front of them
        before = (place.to(dtype) - scores.shape[1]) / scores.shape[1]
        distances[rows] = distances[rows].scatter(1, head[rows], before)
    return distances
