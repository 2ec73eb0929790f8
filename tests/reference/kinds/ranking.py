"""Kind ``ranking``: scores of a single-query ranking, and k-reciprocal re-ranking with its scores."""

import numpy as np
import torch
from reference.common import Checks, rng

from visionkit.reid.ranking import evaluate, evaluate_distances
from visionkit.reid.rerank import rerank_distances


def run(case: dict) -> Checks:
    """Every sub-case: mAP and CMC, then the re-ranked distances and theirs."""
    tolerance = case["tolerance"]
    for item in case["cases"]:
        query, gallery, *labels = make(item["name"], *item["args"])
        yield from _scores(item["name"], evaluate(query, gallery, *labels, topk=ranks(item)), item, tolerance)
        if "rerank" not in item:
            continue
        rerank = item["rerank"]
        options = {key: rerank[key] for key in ("k1", "k2", "lambda_value") if key in rerank}
        distances = rerank_distances(query, gallery, **options)
        name = f"{item['name']} rerank"
        if "distance" in rerank:
            yield f"{name} distance", distances, rerank["distance"], tolerance
        scores = evaluate_distances(distances, *labels, topk=ranks(rerank))
        yield from _scores(name, scores, rerank, tolerance)


def ranks(item: dict) -> list[int]:
    """The ranks of the CMC curve that an item gives."""
    return [int(k) for k in item.get("cmc", {})]


def make(name: str, queries: int, gallery: int, identities: int, cameras: int, dim: int, noise: float) -> tuple:
    """Features (float64, exact float32 values) and labels in the order that the rule draws them."""
    r = rng(name)
    centres = r.standard_normal((identities, dim))
    query_pids, gallery_pids = r.randint(0, identities, queries), r.randint(0, identities, gallery)
    query_camids, gallery_camids = r.randint(0, cameras, queries), r.randint(0, cameras, gallery)
    features = []
    for pids in (query_pids, gallery_pids):
        x = centres[pids] + noise * r.standard_normal((len(pids), dim))
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        features.append(torch.from_numpy(x).double())  # distances are the reference's in float64
    return *features, query_pids, query_camids, gallery_pids, gallery_camids


def _scores(name: str, result, expected: dict, tolerance: float) -> Checks:  # noqa: ANN001
    if "mAP" in expected:
        yield f"{name} mAP", result.mAP, expected["mAP"], tolerance
    for k, value in expected.get("cmc", {}).items():
        yield f"{name} cmc@{k}", result.cmc[int(k)], value, tolerance
