"""Sizes, receptive field, published keys."""

import pytest
import torch
from reference.common import fill_state_dict

from visionkit.errors import VisionKitError
from visionkit.reid.camstyle.networks import PatchDiscriminator, ResnetGenerator, checkpoint_filter_fn


def published_generator(blocks, ngf=4, dropout=True, running_stats=True):
    """Keys and shapes as one long nn.Sequential gives them."""
    shapes = {}

    def layer(prefix, conv, norm=None):
        shapes[f"{prefix}{conv[0]}.weight"], shapes[f"{prefix}{conv[0]}.bias"] = conv[1], [conv[2]]
        if norm is not None and running_stats:
            shapes[f"{prefix}{norm}.running_mean"] = shapes[f"{prefix}{norm}.running_var"] = [conv[2]]
            shapes[f"{prefix}{norm}.num_batches_tracked"] = []

    layer("model.", (1, [ngf, 3, 7, 7], ngf), 2)
    layer("model.", (4, [2 * ngf, ngf, 3, 3], 2 * ngf), 5)
    layer("model.", (7, [4 * ngf, 2 * ngf, 3, 3], 4 * ngf), 8)
    for block in range(10, 10 + blocks):
        second = 6 if dropout else 5
        layer(f"model.{block}.conv_block.", (1, [4 * ngf, 4 * ngf, 3, 3], 4 * ngf), 2)
        layer(f"model.{block}.conv_block.", (second, [4 * ngf, 4 * ngf, 3, 3], 4 * ngf), second + 1)
    end = 10 + blocks
    layer("model.", (end, [4 * ngf, 2 * ngf, 3, 3], 2 * ngf), end + 1)
    layer("model.", (end + 3, [2 * ngf, ngf, 3, 3], ngf), end + 4)
    layer("model.", (end + 7, [3, ngf, 7, 7], 3))
    return shapes


@pytest.mark.parametrize("size", [(16, 8), (32, 16), (20, 12)])
def test_generator_keeps_the_size(size):
    y = ResnetGenerator(ngf=2, num_blocks=1)(torch.randn(2, 3, *size))
    assert y.shape == (2, 3, *size) and y.abs().max() <= 1


@pytest.mark.parametrize("num_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch_of_the_named_size(num_layers, field):
    # instance statistics see the whole image; running statistics in eval mode leave the convolutions' view alone
    network = PatchDiscriminator(ndf=2, num_layers=num_layers, running_stats=True).eval().double()
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64, requires_grad=True)
    scores = network(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


def test_initial_weights():
    weights = torch.cat([p.detach().flatten() for p in ResnetGenerator(ngf=8).parameters() if p.dim() == 4])
    assert weights.std() == pytest.approx(0.02, rel=0.02) and weights.mean().abs() < 1e-3


def test_dropout_acts_in_training_alone():
    network = ResnetGenerator(ngf=2, num_blocks=1)
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("blocks", [1, 6])
def test_published_keys_load_whatever_their_order(blocks, dropout):
    weights = fill_state_dict(published_generator(blocks, dropout=dropout))
    network = ResnetGenerator(ngf=4, num_blocks=blocks, running_stats=True)
    network.load_state_dict(checkpoint_filter_fn(weights, network))
    first, last = 10, 10 + blocks - 1
    assert torch.equal(network.blocks[0].conv1.weight, weights[f"model.{first}.conv_block.1.weight"])
    second = 6 if dropout else 5
    assert torch.equal(network.blocks[-1].conv2.bias, weights[f"model.{last}.conv_block.{second}.bias"])
    assert torch.equal(network.up[4].running_var, weights[f"model.{last + 5}.running_var"])
    shuffled = {f"module.{key}": weights[key] for key in sorted(weights)}
    again = checkpoint_filter_fn(shuffled, network)
    assert all(torch.equal(again[key], value) for key, value in network.state_dict().items())


def test_running_statistics_are_left_out_where_the_model_has_none():
    network = ResnetGenerator(ngf=4, num_blocks=1)
    mapped = checkpoint_filter_fn(fill_state_dict(published_generator(1)), network)
    assert set(mapped) == set(network.state_dict())
    assert checkpoint_filter_fn(mapped, network).keys() == mapped.keys()  # our own keys pass through


@pytest.mark.parametrize("change", [dict(blocks=2), dict(blocks=1, running_stats=False)])
def test_a_checkpoint_of_another_architecture_is_named(change):
    network = ResnetGenerator(ngf=4, num_blocks=1, running_stats=True)
    with pytest.raises(VisionKitError, match="layers with a.*num_blocks"):
        checkpoint_filter_fn(fill_state_dict(published_generator(**change)), network)
