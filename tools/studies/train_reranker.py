"""Train a re-ranker with several query-aware views, and compare it with k-reciprocal re-ranking.

python tools/studies/train_reranker.py --root data/synthetic --json OUT

An embedder is trained on half of the training identities, the re-ranker on lists of the other half, which the embedder
has not seen, as at test time. With and without the orthogonality loss, and with one view.
"""

import argparse
import time

import torch
from small_reid import Embedder, Split, about_run, augment, embed, fit, identity_batch, load, write_json
from torch import Tensor

LENGTH = 50


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


def main(arguments: list[str] | None = None) -> None:
    """mAP and rank-1 of the plain list, k-reciprocal re-ranking and the learned ones."""
    from visionkit.reid.learned_rerank import ViewReranker, listwise_loss, orthogonality_loss, rerank_with
    from visionkit.reid.losses import softmax_triplet_loss
    from visionkit.reid.ranking import evaluate, evaluate_distances

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the synthetic trees")
    parser.add_argument("--cache", metavar="NPZ", help="file to keep decoded images in")
    parser.add_argument("--embedder-seconds", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each re-ranker (default: 60)")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    domain = load(options.root, options.cache)["Market1501"]
    train = domain["train"]
    halves = [Split(*(x[train.pid % 2 == half] for x in train)) for half in (0, 1)]

    torch.manual_seed(0)
    net, r = Embedder(), torch.Generator().manual_seed(0)

    def embedder_loss() -> Tensor:
        rows = identity_batch(halves[0].pid, 24, 4, r)
        return softmax_triplet_loss(net(augment(halves[0].image[rows], r)), halves[0].pid[rows])

    fit(list(net.parameters()), embedder_loss, options.embedder_seconds)
    net.eval()
    feature, query, gallery = (embed(net, x.image) for x in (halves[1], domain["query"], domain["gallery"]))
    labels = [x.numpy() for split in ("query", "gallery") for x in (domain[split].pid, domain[split].camid)]
    result = dict(about_run(), embedder_seconds=options.embedder_seconds, seconds=options.seconds, rows=[])

    def report(way: str, run, **more: object) -> None:  # noqa: ANN001
        start = time.process_time()
        found = run()
        row = dict(way=way, mAP=round(found.mAP, 4), rank1=round(found.cmc[1], 4))
        result["rows"].append(row | dict(cpu_seconds=round(time.process_time() - start, 3)) | more)
        print(result["rows"][-1], flush=True)
        if options.json:
            write_json(options.json, result)

    report("plain list", lambda: evaluate(query, gallery, *labels))
    report("k-reciprocal", lambda: evaluate(query, gallery, *labels, rerank=dict(k1=20, k2=6, lambda_value=0.3)))
    for way, views, weight in (
        ("4 views, orthogonality 0.1", 4, 0.1),
        ("4 views, no orthogonality", 4, 0.0),
        ("1 view", 1, 0.0),
    ):
        torch.manual_seed(0)
        model, draw = ViewReranker(feature.shape[1], views=views), torch.Generator().manual_seed(1)

        def loss(model: ViewReranker = model, draw: torch.Generator = draw, weight: float = weight) -> Tensor:
            asked, candidates, relevant = lists(feature, halves[1], 16, draw)
            out = model(asked, candidates)
            return listwise_loss(out.scores, relevant) + weight * orthogonality_loss(out.anchors)

        steps = fit(list(model.parameters()), loss, options.seconds, 1e-3)
        model.eval()
        with torch.no_grad():
            alike = orthogonality_loss(model(query[:64], gallery[:50].expand(64, -1, -1)).anchors).item()
        run = lambda model=model: evaluate_distances(rerank_with(model, query, gallery, LENGTH), *labels)
        report(f"learned, {way}", run, steps=steps, squared_cosine_of_views=round(alike, 4))


if __name__ == "__main__":
    main()
