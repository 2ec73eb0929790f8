"""One embedder for two data sets: a mixture of experts with enforced routing, against plain sharing.

python tools/studies/train_experts.py --root data/synthetic --json OUT

For the same CPU time in all: one network on both data sets; the same with one expert for both; with an expert for each
and a router; and two networks, each on its own data set for half of the time. The experts are tested with the data set
known, and with the router choosing.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from about import about_run
from small_reid import DOMAINS, Embedder, add_people, augment, embed, identity_batch, load, scores
from study import fit, keep, run_study
from torch import Tensor

from visionkit.reid.experts import DomainExperts, routing_loss
from visionkit.reid.losses import softmax_triplet_loss

Draw = Callable[[int, int], tuple[Tensor, Tensor]]  # the number of a data set and of identities -> images, identities
Embed = Callable[[Tensor], Tensor]
Way = tuple[str, dict[str, Embed], dict]  # its name, what embeds the images of each data set, more to tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The people, and for how long to train."""
    add_people(parser)
    parser.add_argument("--seconds", type=float, default=80, help="CPU seconds of each way (default: 80)")
    parser.add_argument("--json", metavar="OUT")


def run(options: argparse.Namespace) -> int:
    """mAP and rank-1 of each way on each data set."""
    domains = load(options.root, options.cache)
    result = dict(about_run(), seconds=options.seconds, rows=[])
    r = torch.Generator().manual_seed(0)

    def draw(number: int, identities: int) -> tuple[Tensor, Tensor]:
        train = domains[DOMAINS[number]]["train"]
        rows = identity_batch(train.pid, identities, 4, r)
        return augment(train.image[rows], r), train.pid[rows]

    queries = [domains[name]["query"].image for name in DOMAINS]
    for ways in (one_network, one_expert, lambda *given: two_experts(*given, queries), networks_apart):
        for way, features, more in ways(draw, options.seconds):
            found = {name: scores(features[name], domains[name]) for name in DOMAINS}
            keep(dict(way=way, **found, **more), result, options.json)
    return 0


def one_network(draw: Draw, seconds: float) -> Iterator[Way]:
    """Plain sharing."""
    torch.manual_seed(0)
    net = Embedder()

    def loss() -> Tensor:
        image, pids = both(draw)
        return triplets(net(image), pids)

    steps = fit(net.parameters(), loss, seconds)
    net.eval()
    yield "one network", dict.fromkeys(DOMAINS, lambda x: embed(net, x)), dict(steps=steps)


def one_expert(draw: Draw, seconds: float) -> Iterator[Way]:
    """The layers of an expert, without a choice."""
    trunk, experts, steps = with_experts(1, draw, seconds)
    yield "one expert for both", dict.fromkeys(DOMAINS, routed(trunk, experts)), dict(steps=steps)


def two_experts(draw: Draw, seconds: float, queries: list[Tensor]) -> Iterator[Way]:
    """The data set known, then the router choosing; how often it is right about the queries of each."""
    trunk, experts, steps = with_experts(2, draw, seconds)
    known = {name: routed(trunk, experts, number) for number, name in enumerate(DOMAINS)}
    yield "experts, data set known", known, dict(steps=steps)
    with torch.no_grad():
        chosen = [experts(trunk(image)).domain for image in queries]
    right = {name: (x == number).float().mean().item() for number, (name, x) in enumerate(zip(DOMAINS, chosen))}
    yield "experts, router chooses", dict.fromkeys(DOMAINS, routed(trunk, experts)), dict(router_accuracy=right)


def networks_apart(draw: Draw, seconds: float) -> Iterator[Way]:
    """Each on its own data set for half of the time, and each tried on the other's."""
    alone = []
    for number in range(len(DOMAINS)):
        torch.manual_seed(0)
        net = Embedder()

        def loss(net: Embedder = net, number: int = number) -> Tensor:
            image, pid = draw(number, 24)
            return softmax_triplet_loss(net(image), pid)

        fit(net.parameters(), loss, seconds / 2)
        net.eval()
        alone.append(lambda x, net=net: embed(net, x))
    yield "a network for each", dict(zip(DOMAINS, alone)), {}
    yield "the other one's network", dict(zip(DOMAINS, alone[::-1])), {}


def with_experts(count: int, draw: Draw, seconds: float) -> tuple[Embedder, DomainExperts, int]:
    """Trunk and experts trained together on both data sets, and the number of steps."""
    torch.manual_seed(0)
    trunk, experts = Embedder(), DomainExperts(128, count)
    domain = torch.tensor([0, count - 1]).repeat_interleave(48)

    def loss() -> Tensor:
        image, pids = both(draw)
        found = experts(trunk(image), domain)
        return triplets(found.features, pids) + routing_loss(found)

    trained = (p for p in [*trunk.parameters(), *experts.parameters()] if p.requires_grad)
    steps = fit(trained, loss, seconds)
    return trunk.eval(), experts.eval(), steps


def routed(trunk: Embedder, experts: DomainExperts, number: int | None = None) -> Embed:
    """Embeds with the expert of a data set's number, or with the one that the router chooses."""
    domain = lambda part: None if number is None else torch.full((len(part),), number)
    return lambda x: embed(lambda part: experts(trunk(part), domain(part)).features, x)


def both(draw: Draw) -> tuple[Tensor, list[Tensor]]:
    """Images of 12 people of each data set in one batch, and the identities of each."""
    images, pids = zip(*(draw(number, 12) for number in range(len(DOMAINS))))
    return torch.cat(images), list(pids)


def triplets(features: Tensor, pids: list[Tensor]) -> Tensor:
    """Triplets within each data set."""
    return sum(softmax_triplet_loss(half, pid) for half, pid in zip(features.chunk(2), pids))


if __name__ == "__main__":
    run_study(sys.modules[__name__])
