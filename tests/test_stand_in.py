"""The stand-in for a GPU: it does not mix with the CPU, and computes what the CPU does."""

import numpy as np
import pytest
import torch
from torch.utils import backend_registration

from .problems import generator, matrix

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch lets no device be written in Python", allow_module_level=True)

from .stand_in import DEVICE, Guest, StandIn


@pytest.fixture(autouse=True)
def within():
    with StandIn():
        yield


def test_tensors_say_where_they_are():
    x = matrix(2, 3).to(DEVICE)
    made = [
        x + 1,
        x[0],
        torch.zeros(2, device=DEVICE),
        torch.tensor([1.0, 2.0], device=DEVICE),
        x.new_tensor([1.0]),
        torch.randn_like(x),
        x.max(0).indices,
        torch.cat([x, x]),
        torch.zeros(2, 3, device=DEVICE).copy_(x.cpu()),
    ]
    assert {t.device for t in made} == {DEVICE}
    on_the_cpu = [x.cpu(), torch.zeros(2, 3).copy_(x), torch.zeros_like(x, device="cpu"), torch.zeros(2)]
    assert not any(isinstance(t, Guest) for t in on_the_cpu)
    assert {t.device.type for t in on_the_cpu} == {"cpu"}


ZERO = torch.zeros(1, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, y: x + y,
        lambda x, y: y.add_(x),
        lambda x, y: torch.add(x, x, out=y),
        lambda x, y: x @ y.mT,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.stack([x[0, 0], y[0, 0]]),
        lambda x, y: torch.where(y > 0, x, 0.0),
        lambda x, y: x.gather(0, ZERO),
        lambda x, y: x.index_put_((ZERO[0, :1],), y[:1]),
        lambda x, y: y[x[0].long()],
        lambda x, y: torch.full((2, 3), y[0, 0].item(), device=DEVICE) * y,
    ],
)
def test_two_devices_do_not_mix(operation):
    x, y = matrix(2, 3).to(DEVICE), matrix(2, 3)
    with pytest.raises(RuntimeError, match="on the CPU and on another device"):
        operation(x, y)


def test_a_number_and_an_index_may_come_from_the_cpu():
    x, y = matrix(2, 3).to(DEVICE), matrix(2, 3)
    for found, expected in [
        (x * torch.tensor(2.0), 2 * y),
        (torch.where(x > 0, x, torch.tensor(0.0).double()), y.clamp(min=0)),
        (x[torch.tensor([1, 0])], y.flip(0)),
        (x.clone().fill_(torch.tensor(3.0)), torch.full_like(y, 3)),
    ]:
        assert found.device == DEVICE
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="on the CPU and on another device"):
        y * x[0, 0]


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (lambda x: x.numpy(), RuntimeError, r"numpy\(\) is not supported"),
        (lambda x: np.asarray(x), RuntimeError, r"numpy\(\) is not supported"),
        (
            lambda x: torch.randn(2, generator=generator(0), device=DEVICE),
            RuntimeError,
            "generator is on the",
        ),
        (lambda x: x.normal_(generator=generator(0)), RuntimeError, "generator is on the CPU"),
        (lambda x: x.long() @ x.long().mT, RuntimeError, "not on a GPU for torch.int64"),
    ],
)
def test_refuses_what_a_gpu_does_not_do(operation, error, message):
    with pytest.raises(error, match=message):
        operation(matrix(2, 3).to(DEVICE))


def test_views_share_their_entries():
    x = matrix(2, 3).to(DEVICE)
    x[0].fill_(7.0)
    x.mT[2] = 5.0
    assert x.cpu()[0].tolist() == [7, 7, 5]
    row = torch.ones(3, device=DEVICE).unsqueeze_(0)
    row.mul_(2)
    assert row.shape == (1, 3)
    assert row.squeeze_(0).shape == (3,)
    assert (matrix(3).to(DEVICE) @ matrix(3, 4).to(DEVICE)).shape == (4,)


def test_derivatives_of_both_orders():
    def f(x):
        return (x @ x.mT).exp().sum()

    here, there = matrix(2, 3).requires_grad_(), matrix(2, 3).to(DEVICE).requires_grad_()
    direction = matrix(2, 3, seed=1)
    found = []
    for x, v in ((here, direction), (there, direction.to(DEVICE))):
        (g,) = torch.autograd.grad(f(x), x, create_graph=True)
        (h,) = torch.autograd.grad((g * v).sum(), x)
        assert g.device == h.device == x.device
        found.append((g.detach().cpu(), h.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-14, atol=0)
    # A gradient passes from one device to the other.
    (g,) = torch.autograd.grad(f(here.to(DEVICE)), here)
    torch.testing.assert_close(g, found[0][0], rtol=1e-14, atol=0)
