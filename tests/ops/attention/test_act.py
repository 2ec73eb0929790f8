import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.ops.attention.act import calibrate_sinks


def weights(seed=0):
    r = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=r)
    scores[..., 0] += 3  # the class token
    scores[:, 1, :, 4] += 3
    return scores.softmax(-1)


def test_against_loops():
    before = weights()
    after, sinks, received = calibrate_sinks(before, threshold=0.2, beta=0.4)
    assert sinks[:, 1, 4].all() and not sinks[..., 0].any()
    for b in range(2):
        for h in range(3):
            for i in range(10):
                row = before[b, h, i]
                sink = [j for j in range(1, 10) if before[b, h, :, j].mean() > 0.2]
                removed = sum(0.6 * row[j] for j in sink)
                rest = sum(row[j] for j in range(10) if j not in sink)
                expected = [0.4 * row[j] if j in sink else row[j] + removed * row[j] / rest for j in range(10)]
                torch.testing.assert_close(after[b, h, i], torch.stack(expected))
    torch.testing.assert_close(received, before.mean(-2))


def test_rows_still_sum_to_one():
    for threshold in (0.0, 0.05, 0.2, 1.0):
        after = calibrate_sinks(weights(), threshold=threshold, beta=0.1).weights
        torch.testing.assert_close(after.sum(-1), torch.ones_like(after[..., 0]))


def test_nothing_changes_without_sinks_or_with_beta_one():
    before = weights()
    assert torch.equal(calibrate_sinks(before, threshold=1.0).weights, before)
    torch.testing.assert_close(calibrate_sinks(before, beta=1.0).weights, before)


def test_rows_that_see_sinks_alone_are_left():
    before = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    before[..., 2] = 1
    assert torch.equal(calibrate_sinks(before).weights, before)


def test_negative_skip_is_told():
    """All keys but the last were passed over."""
    with pytest.raises(VisionKitError, match="^skip=-1: expected a whole number of at least 0$"):
        calibrate_sinks(weights(), skip=-1)
