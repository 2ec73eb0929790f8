"""Train a Siamese embedder from co-occurrence, without identities across cameras.

python tools/studies/train_pairs.py --root data/synthetic --json OUT

Two images of one person under one camera (a tracklet) are a pair; the multiple-negatives ranking loss tells each pair
from all others. Which tracklets are of one person is never used. Compared for the same CPU time: an untrained network,
the pairs, and training on identities (triplets) as the bound.
"""

import argparse

import torch
from small_reid import Embedder, about_run, augment, embed, fit, identity_batch, load, scores, write_json


def main(arguments: list[str] | None = None) -> None:
    """mAP and rank-1 of each on its own domain."""
    from visionkit.reid.losses import softmax_triplet_loss
    from visionkit.reid.pairs import CoOccurrence, multiple_negatives_loss

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the synthetic trees")
    parser.add_argument("--cache", metavar="NPZ", help="file to keep decoded images in")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each training (default: 60)")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    domain = load(options.root, options.cache)["Market1501"]
    train = domain["train"]
    pairs = CoOccurrence(list(zip(train.pid.tolist(), train.camid.tolist())))
    result = dict(about_run(), seconds=options.seconds, tracklets=len(pairs), rows=[])

    def by_pairs(model: Embedder, r: torch.Generator) -> torch.Tensor:
        first, second = pairs.draw(48, r)
        images = augment(train.image[torch.cat([first, second])], r)
        return multiple_negatives_loss(*model(images).chunk(2))

    def by_identities(model: Embedder, r: torch.Generator) -> torch.Tensor:
        rows = identity_batch(train.pid, 24, 4, r)
        return softmax_triplet_loss(model(augment(train.image[rows], r)), train.pid[rows])

    for name, loss in (("untrained", None), ("pairs", by_pairs), ("identities", by_identities)):
        torch.manual_seed(0)
        model, r, steps = Embedder(), torch.Generator().manual_seed(0), 0
        if loss:
            steps = fit(list(model.parameters()), lambda model=model, r=r, loss=loss: loss(model, r), options.seconds)
        else:
            model(train.image[:256])  # norms see the data
        model.eval()
        row = dict(way=name, steps=steps, **scores(lambda x, model=model: embed(model, x), domain))
        result["rows"].append(row)
        print(row, flush=True)
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
