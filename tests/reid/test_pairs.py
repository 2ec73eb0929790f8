import torch
from torch.nn import functional as F

from visionkit.reid.pairs import CoOccurrence, multiple_negatives_loss


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_loss_against_loops():
    a, p = draw(6, 4), draw(6, 4).flip(0)
    cosine = [[F.cosine_similarity(x, y, dim=0) for y in p] for x in a]
    one_way = lambda rows: -sum((20 * torch.stack(row)).log_softmax(0)[i] for i, row in enumerate(rows)) / 6
    expected = (one_way(cosine) + one_way([list(column) for column in zip(*cosine)])) / 2
    torch.testing.assert_close(multiple_negatives_loss(a, p), expected)


def test_gradients():
    a, p = draw(4, 3).requires_grad_(), draw(4, 3).flip(1).requires_grad_()
    assert torch.autograd.gradcheck(multiple_negatives_loss, (a, p))


def test_pairs_share_a_key_and_are_two_items():
    keys = ["a", "b", "a", "c", "b", "b", "d"]
    pairs = CoOccurrence(keys)
    assert len(pairs) == 2
    for seed in range(5):
        first, second = pairs.draw(10, torch.Generator().manual_seed(seed))
        assert sorted(keys[i] for i in first) == ["a", "b"]
        assert all(keys[i] == keys[j] and i != j for i, j in zip(first, second))
