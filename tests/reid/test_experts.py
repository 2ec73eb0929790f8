import pytest
import torch

from visionkit.errors import VisionKitError
from visionkit.reid.experts import DomainExperts, routing_loss


def experts():
    torch.manual_seed(0)
    model = DomainExperts(6, domains=3, hidden=4)
    for expert in model.experts:
        torch.nn.init.normal_(expert.up.weight)
    return model


def test_each_row_passes_its_own_expert():
    model, x = experts().eval(), torch.randn(7, 6)
    domain = torch.tensor([0, 2, 1, 0, 0, 2, 1])
    y = model(x, domain).features
    for i, number in enumerate(domain):
        torch.testing.assert_close(y[i], model.experts[number](x[i : i + 1])[0])


def test_routing_is_enforced_in_training():
    model = experts()
    routed = model(torch.randn(8, 6), torch.tensor([0, 1] * 4))
    routed.features.square().sum().backward()
    touched = [expert.down.weight.grad is not None for expert in model.experts]
    assert touched == [True, True, False]
    with pytest.raises(VisionKitError, match="training needs the data set"):
        model(torch.randn(2, 6))
    with pytest.raises(VisionKitError, match="from 0 to 2"):
        model(torch.randn(2, 6), torch.tensor([0, 3]))


def test_a_single_image_of_a_domain_trains():
    y = experts()(torch.randn(3, 6), torch.tensor([0, 0, 1])).features
    assert y.isfinite().all()


def test_the_router_learns_the_domains_and_leaves_the_trunk_alone():
    model, r = experts(), torch.Generator().manual_seed(0)
    domain = torch.randint(3, (90,), generator=r)
    x = (torch.eye(6)[domain] * 3 + torch.randn(90, 6, generator=r)).requires_grad_()
    optimizer = torch.optim.Adam(model.router.parameters(), 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        routing_loss(model(x, domain)).backward()
        optimizer.step()
    assert x.grad is None or not x.grad.any()
    chosen = model.eval()(x)
    assert (chosen.domain == domain).float().mean() > 0.9
    torch.testing.assert_close(chosen.features, model(x, chosen.domain).features)
