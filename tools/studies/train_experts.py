"""One embedder for two data sets: a mixture of experts with enforced routing, against plain sharing.

python tools/studies/train_experts.py --root data/synthetic --json OUT

For the same CPU time in all: one network on both data sets; the same with one expert for both; with an expert for each
and a router; and two networks, each on its own data set for half of the time. The experts are tested with the data set
known, and with the router choosing.
"""

import argparse

import torch
from small_reid import DOMAINS, Embedder, about_run, augment, embed, fit, identity_batch, load, scores, write_json
from torch import Tensor


def main(arguments: list[str] | None = None) -> None:
    """mAP and rank-1 of each way on each data set."""
    from visionkit.reid.experts import DomainExperts, routing_loss
    from visionkit.reid.losses import softmax_triplet_loss

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the synthetic trees")
    parser.add_argument("--cache", metavar="NPZ", help="file to keep decoded images in")
    parser.add_argument("--seconds", type=float, default=80, help="CPU seconds of each way (default: 80)")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    domains = load(options.root, options.cache)
    result = dict(about_run(), seconds=options.seconds, rows=[])
    r = torch.Generator().manual_seed(0)

    def batch(number: int, identities: int) -> tuple[Tensor, Tensor]:
        train = domains[DOMAINS[number]]["train"]
        rows = identity_batch(train.pid, identities, 4, r)
        return augment(train.image[rows], r), train.pid[rows]

    def report(way: str, features: dict, **more: object) -> None:
        row = dict(way=way, **{name: scores(features[name], domains[name]) for name in DOMAINS}, **more)
        result["rows"].append(row)
        print(row, flush=True)
        if options.json:
            write_json(options.json, result)

    torch.manual_seed(0)
    shared = Embedder()

    def shared_loss() -> Tensor:
        parts = [batch(number, 12) for number in (0, 1)]
        x = shared(torch.cat([image for image, _ in parts]))
        return sum(softmax_triplet_loss(half, pid) for half, (_, pid) in zip(x.chunk(2), parts))

    steps = fit(list(shared.parameters()), shared_loss, options.seconds)
    shared.eval()
    report("one network", dict.fromkeys(DOMAINS, lambda x: embed(shared, x)), steps=steps)

    def with_experts(count: int) -> tuple[Embedder, DomainExperts, int]:
        torch.manual_seed(0)
        trunk, experts = Embedder(), DomainExperts(128, count)
        domain = torch.tensor([0, count - 1]).repeat_interleave(48)

        def loss() -> Tensor:
            parts = [batch(number, 12) for number in (0, 1)]
            routed = experts(trunk(torch.cat([image for image, _ in parts])), domain)
            triplets = sum(softmax_triplet_loss(x, pid) for x, (_, pid) in zip(routed.features.chunk(2), parts))
            return triplets + routing_loss(routed)

        trained = [p for p in [*trunk.parameters(), *experts.parameters()] if p.requires_grad]
        steps = fit(trained, loss, options.seconds)
        return trunk.eval(), experts.eval(), steps

    trunk, experts, steps = with_experts(1)
    chosen = lambda x: embed(lambda part: experts(trunk(part)).features, x)
    report("one expert for both", dict.fromkeys(DOMAINS, chosen), steps=steps)

    trunk, experts, steps = with_experts(2)
    known = {
        name: lambda x, n=n: embed(lambda part: experts(trunk(part), torch.full((len(part),), n)).features, x)
        for n, name in enumerate(DOMAINS)
    }
    report("experts, data set known", known, steps=steps)
    with torch.no_grad():
        right = {
            name: (experts(trunk(domains[name]["query"].image)).domain == n).float().mean().item()
            for n, name in enumerate(DOMAINS)
        }
    report("experts, router chooses", dict.fromkeys(DOMAINS, chosen), router_accuracy=right)

    alone = {}
    for number, name in enumerate(DOMAINS):
        torch.manual_seed(0)
        alone[name] = Embedder()
        loss = lambda net=alone[name], number=number: softmax_triplet_loss(*_embedded(net, batch(number, 24)))
        fit(list(alone[name].parameters()), loss, options.seconds / 2)
        alone[name].eval()
    report("a network for each", {name: lambda x, net=alone[name]: embed(net, x) for name in DOMAINS})
    across = {name: lambda x, net=alone[other]: embed(net, x) for name, other in zip(DOMAINS, DOMAINS[::-1])}
    report("the other one's network", across)


def _embedded(net: Embedder, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return net(batch[0]), batch[1]


if __name__ == "__main__":
    main()
