"""What each process of tests/reid/test_distributed.py runs: it writes down the scores that it got."""

import json
import os
import sys

import numpy as np
import torch
from reid.ranking_sets import random_set
from reid.test_pseudo_labels import VIEWS, Dots, Model, run_hook

from visionkit.engine.runner import init_distributed
from visionkit.registry import METRICS
from visionkit.reid import ranking
from visionkit.reid.knn import self_neighbours
from visionkit.reid.pseudo_labels import extract_fused


def job(folder):
    data = random_set(queries=70, gallery=500)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    ranking.block_rows = lambda width: 16  # several blocks for each process
    plain = ranking.evaluate(*data, distributed=True)
    reranked = ranking.evaluate(*data, rerank=dict(k1=8, k2=3), distributed=True)
    return dict(
        plain=[plain.mAP, plain.mINP, *plain.cmc.values()],
        reranked=[reranked.mAP, reranked.mINP, *reranked.cmc.values()],
        metric=metric_scores(data, rank, world),
        neighbours=float(self_neighbours(data[1], 5, distributed=True).distances.sum()),
        fused=[view.tolist() for view in extract_fused(Model(), Dots(), batch_size=4)],  # the first process alone
        labels=labels(folder, rank),
    )


def metric_scores(data, rank, world):
    """Every image by some process, as a sampler hands them out, and the first one twice to fill the last batch."""
    qf, gf, qp, qc, gp, gc = data
    metric = METRICS.build(dict(type="visionkit.ReIDMetric"))
    indices = np.append(np.arange(rank, len(qf) + len(gf), world), 0)
    features, role = np.concatenate([qf, gf]), np.repeat([0, 1], [len(qf), len(gf)])
    pid, camid = np.concatenate([qp, gp]), np.concatenate([qc, gc])
    for at in np.array_split(indices, 7):
        batch = dict(role=role[at], index=at, pid=pid[at], camid=camid[at])
        metric.process({key: torch.from_numpy(value) for key, value in batch.items()}, torch.from_numpy(features[at]))
    return metric.evaluate(len(features))


def labels(folder, rank):
    runner = run_hook(folder)
    return [runner.train_loop.dataloaders[view].labels.tolist() for view in VIEWS]


if __name__ == "__main__":
    torch.set_num_threads(1)
    init_distributed("pytorch")
    from pathlib import Path

    folder = Path(sys.argv[1])
    answer = job(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(answer))
    torch.distributed.destroy_process_group()
