"""Train a re-ranker with several query-aware views, and compare it with k-reciprocal re-ranking.

python tools/studies/train_reranker.py --root data/synthetic --json OUT

An embedder is trained on half of the training identities, the re-ranker on lists of the other half, which the embedder
has not seen, as at test time. With and without the orthogonality loss, and with one view.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from about import about_run
from small_reid import Embedder, Split, add_people, augment, embed, identity_batch, load
from study import fit, keep, run_study
from torch import Tensor

from visionkit.reid.learned_rerank import ViewReranker, listwise_loss, orthogonality_loss, rerank_with
from visionkit.reid.losses import softmax_triplet_loss
from visionkit.reid.ranking import evaluate, evaluate_distances

LENGTH = 50
WAYS = {  # number of views, and weight of the orthogonality loss
    "4 views, orthogonality 0.1": (4, 0.1),
    "4 views, no orthogonality": (4, 0.0),
    "1 view": (1, 0.0),
}


def lists(feature: Tensor, part: Split, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries (B, D), their nearest 50 images of other cameras (B, 50, D), and which are of the same person.

    A random share of the gallery is dropped each time, so that lists are of many lengths and mixtures.
    """
    query = torch.randint(len(feature), (count,), generator=generator)
    similarity = feature[query] @ feature.mT
    similarity[(part.camid[query, None] == part.camid) & (part.pid[query, None] == part.pid)] = -2
    similarity[torch.rand(similarity.shape, generator=generator) < 0.3] = -2
    head = similarity.topk(LENGTH).indices
    return feature[query], feature[head], part.pid[head] == part.pid[query, None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The people, and for how long to train."""
    add_people(parser)
    parser.add_argument("--embedder-seconds", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each re-ranker (default: 60)")
    parser.add_argument("--json", metavar="OUT")


def run(options: argparse.Namespace) -> int:
    """mAP and rank-1 of the plain list, k-reciprocal re-ranking and the learned ones."""
    domain = load(options.root, options.cache)["Market1501"]
    train = domain["train"]
    halves = [Split(*(x[train.pid % 2 == half] for x in train)) for half in (0, 1)]
    net = trained_embedder(halves[0], options.embedder_seconds)
    feature, query, gallery = (embed(net, x.image) for x in (halves[1], domain["query"], domain["gallery"]))
    labels = [x.numpy() for split in ("query", "gallery") for x in (domain[split].pid, domain[split].camid)]
    result = dict(about_run(), embedder_seconds=options.embedder_seconds, seconds=options.seconds, rows=[])

    def report(way: str, rank: Callable, **more: object) -> None:
        start = time.process_time()
        found = rank()
        row = dict(way=way, mAP=round(found.mAP, 4), rank1=round(found.cmc[1], 4))
        keep(row | dict(cpu_seconds=round(time.process_time() - start, 3)) | more, result, options.json)

    report("plain list", lambda: evaluate(query, gallery, *labels))
    report("k-reciprocal", lambda: evaluate(query, gallery, *labels, rerank=dict(k1=20, k2=6, lambda_value=0.3)))
    for way, (views, weight) in WAYS.items():
        model, steps = trained_reranker(feature, halves[1], views, weight, options.seconds)
        few = query[:64]
        with torch.no_grad():
            alike = orthogonality_loss(model(few, gallery[:50].expand(len(few), -1, -1)).anchors).item()
        rank = lambda model=model: evaluate_distances(rerank_with(model, query, gallery, LENGTH), *labels)
        report(f"learned, {way}", rank, steps=steps, squared_cosine_of_views=round(alike, 4))
    return 0


def trained_embedder(part: Split, seconds: float) -> Embedder:
    """An embedder, by triplets."""
    torch.manual_seed(0)
    net, r = Embedder(), torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        rows = identity_batch(part.pid, 24, 4, r)
        return softmax_triplet_loss(net(augment(part.image[rows], r)), part.pid[rows])

    fit(net.parameters(), loss, seconds)
    return net.eval()


def trained_reranker(
    feature: Tensor, part: Split, views: int, weight: float, seconds: float
) -> tuple[ViewReranker, int]:
    """A re-ranker trained on lists of features (N, D), and the number of steps."""
    torch.manual_seed(0)
    model, draw = ViewReranker(feature.shape[1], views=views), torch.Generator().manual_seed(1)

    def loss() -> Tensor:
        asked, candidates, relevant = lists(feature, part, 16, draw)
        out = model(asked, candidates)
        return listwise_loss(out.scores, relevant) + weight * orthogonality_loss(out.anchors)

    steps = fit(model.parameters(), loss, seconds, 1e-3)
    return model.eval(), steps


if __name__ == "__main__":
    run_study(sys.modules[__name__])
