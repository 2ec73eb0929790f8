"""Train a Siamese embedder from co-occurrence, without identities across cameras.

python tools/studies/train_pairs.py --root data/synthetic --json OUT

Two images of one person under one camera (a tracklet) are a pair; the multiple-negatives ranking loss tells each pair
from all others. Which tracklets are of one person is never used. Compared for the same CPU time: an untrained network,
the pairs, and training on identities (triplets) as the bound.
"""

import argparse
import sys

import torch
from about import about_run
from small_reid import Embedder, Split, add_people, augment, embed, identity_batch, load, scores
from study import fit, keep, run_study
from torch import Tensor

from visionkit.reid.losses import softmax_triplet_loss
from visionkit.reid.pairs import CoOccurrence, multiple_negatives_loss


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The people, and for how long to train."""
    add_people(parser)
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each training (default: 60)")
    parser.add_argument("--json", metavar="OUT")


def run(options: argparse.Namespace) -> int:
    """mAP and rank-1 of each on its own domain."""
    domain = load(options.root, options.cache)["Market1501"]
    train = domain["train"]
    pairs = CoOccurrence(list(zip(train.pid.tolist(), train.camid.tolist())))
    result = dict(about_run(), seconds=options.seconds, tracklets=len(pairs), rows=[])
    losses = dict(
        pairs=lambda model, r: pair_loss(model, train, pairs, r),
        identities=lambda model, r: triplet_loss(model, train, r),
    )
    for way in ("untrained", *losses):
        torch.manual_seed(0)
        model, r, steps = Embedder(), torch.Generator().manual_seed(0), 0
        if way in losses:
            steps = fit(model.parameters(), lambda way=way, model=model, r=r: losses[way](model, r), options.seconds)
        else:
            model(train.image[:256])  # norms see the data
        model.eval()
        found = scores(lambda x, model=model: embed(model, x), domain)
        keep(dict(way=way, steps=steps, **found), result, options.json)
    return 0


def pair_loss(model: Embedder, train: Split, pairs: CoOccurrence, r: torch.Generator) -> Tensor:
    """Each pair of images of a tracklet, told from all others."""
    first, second = pairs.draw(48, r)
    return multiple_negatives_loss(*model(augment(train.image[torch.cat([first, second])], r)).chunk(2))


def triplet_loss(model: Embedder, train: Split, r: torch.Generator) -> Tensor:
    """Four images of each of 24 people."""
    rows = identity_batch(train.pid, 24, 4, r)
    return softmax_triplet_loss(model(augment(train.image[rows], r)), train.pid[rows])


if __name__ == "__main__":
    run_study(sys.modules[__name__])
