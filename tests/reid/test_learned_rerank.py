import pytest
import torch
from torch.nn import functional as F

from visionkit.reid.learned_rerank import ViewReranker, listwise_loss, orthogonality_loss, rerank_with


def model(seed=0, trained=True):
    torch.manual_seed(seed)
    net = ViewReranker(8, dim=16, views=3, heads=2)
    if trained:
        torch.nn.init.normal_(net.value.weight)
    return net.eval()


def test_an_untrained_reranker_keeps_the_list():
    query, gallery = torch.randn(5, 8), torch.randn(40, 8)
    distances = rerank_with(model(trained=False), query, gallery, length=15)
    plain = F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T
    assert torch.equal(distances.argsort(1), plain.argsort(1, descending=True))


def test_only_the_head_of_the_list_moves():
    query, gallery = torch.randn(5, 8), torch.randn(40, 8)
    order = (2 - 2 * F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T).argsort(1)
    new = rerank_with(model(), query, gallery, length=15).argsort(1)
    assert torch.equal(new[:, 15:], order[:, 15:]) and not torch.equal(new, order)
    assert torch.equal(new[:, :15].sort(1).values, order[:, :15].sort(1).values)
    scores = model()(query[:1], gallery[order[:1, :15]]).scores[0]
    assert torch.equal(order[0, :15][scores.argsort(descending=True)], new[0, :15])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_list_is_reranked_in_every_precision(dtype):
    query, gallery = torch.randn(5, 8), torch.randn(40, 8)
    distances = rerank_with(model(trained=False).to(dtype), query.to(dtype), gallery.to(dtype), length=15)
    assert distances.dtype == torch.promote_types(dtype, torch.float32)
    assert (distances < 0).sum(1).tolist() == [15] * 5


def test_the_list_is_reranked_under_autocast():
    query, gallery = torch.randn(5, 8), torch.randn(40, 8)
    exact = rerank_with(model(trained=False), query, gallery, length=15)
    with torch.autocast("cpu", torch.bfloat16):
        distances = rerank_with(model(trained=False), query, gallery, length=15)
    assert distances.dtype == torch.float32 and torch.equal(distances < 0, exact < 0)


def test_scores_follow_the_candidates_order():
    query, candidates = torch.randn(2, 8), torch.randn(2, 6, 8)
    turn = torch.tensor([3, 0, 5, 1, 4, 2])
    scores, anchors = model()(query, candidates)
    turned = model()(query, candidates[:, turn])
    torch.testing.assert_close(turned.scores, scores[:, turn])
    torch.testing.assert_close(turned.anchors, anchors)


def test_listwise_loss_against_loops():
    scores = torch.randn(3, 4, dtype=torch.float64)
    relevant = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    expected = -(scores[0].log_softmax(0)[[0, 2]].mean() + scores[2].log_softmax(0)[1]) / 2
    torch.testing.assert_close(listwise_loss(scores, relevant), expected)
    assert listwise_loss(scores, torch.zeros(3, 4).bool()) == 0


def test_orthogonality():
    assert orthogonality_loss(torch.eye(4)[None, :3]) == 0
    torch.testing.assert_close(orthogonality_loss(torch.ones(2, 3, 4)), torch.tensor(1.0))
    half = torch.tensor([[[1.0, 0], [1, 1]]])
    torch.testing.assert_close(orthogonality_loss(half), torch.tensor(0.5))


def test_it_learns_what_the_cosine_misses():
    """Identity lies in the first two channels, the rest is noise as strong."""
    r = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = ViewReranker(8, dim=16, views=2, heads=2)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)

    def lists():
        angle = torch.randint(8, (32, 13), generator=r) * (2 * torch.pi / 8)
        angle[:, 1:4] = angle[:, :1]
        x = torch.cat([torch.stack([angle.cos(), angle.sin()], -1), 0.7 * torch.randn(32, 13, 6, generator=r)], -1)
        return x[:, 0], x[:, 1:], (angle[:, 1:] - angle[:, :1]).abs() < 0.1

    losses = []
    for _ in range(150):
        query, candidates, relevant = lists()
        out = net(query, candidates)
        loss = listwise_loss(out.scores, relevant) + 0.1 * orthogonality_loss(out.anchors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
