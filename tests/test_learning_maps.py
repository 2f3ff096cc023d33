"""Input-convex networks, the stochastic dual, projections of plans, the Monge gap and the L²-UVP."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import otbook
from otbook.costs import sqeuclidean
from otbook.learning import (
    ICNN,
    barycentric_projection,
    l2_uvp,
    monge_gap,
    plan_density,
    stochastic_dual,
)

FLOATS = [torch.float32, torch.float64]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def network(d=3, widths=(8, 6), seed=0, **options):
    return ICNN(d, widths, generator=generator(seed), **{"dtype": torch.float64, **options})


def scrambled(**options):
    """A network far from where training starts, with weights of both signs."""
    phi = network(**options)
    with torch.no_grad():
        for k, p in enumerate(phi.parameters()):
            p.add_(normal(*p.shape, seed=k, dtype=p.dtype))
    return phi


# --- ICNN


@pytest.mark.parametrize("activation", [F.softplus, F.relu, F.celu])
@pytest.mark.parametrize("widths", [(5,), (8, 6), (4, 5, 6)])
def test_is_strongly_convex_whatever_the_parameters(activation, widths):
    phi = scrambled(widths=widths, activation=activation, strong_convexity=0.3)
    x, y = normal(2, 400, 3, seed=1)
    t = torch.rand(400, generator=generator(2), dtype=torch.float64)
    chord = (1 - t) * phi(x) + t * phi(y) - phi((1 - t)[:, None] * x + t[:, None] * y)
    needed = 0.3 / 2 * t * (1 - t) * (x - y).square().sum(1)
    assert (chord - needed).min() >= -1e-10


def test_modulus_is_attained_without_the_other_terms():
    phi = network(strong_convexity=0.3)
    with torch.no_grad():
        for p in phi.parameters():
            p.zero_()
    x = normal(10, 3)
    assert_close(phi(x), 0.15 * x.square().sum(1))


def test_identity_is_in_the_class():
    phi = network()
    with torch.no_grad():
        phi.v.zero_()
    x = normal(10, 3)
    assert_close(phi(x), x.square().sum(1) / 2)
    assert_close(phi.transport(x), x)


def test_starts_near_the_identity():
    x = normal(50, 3)
    assert (network(widths=(64, 64)).transport(x) - x).norm(dim=1).max() < 0.5


def test_transport_is_the_gradient():
    phi, x, h = scrambled(), normal(4, 3), 1e-5
    differences = torch.stack(
        [(phi(x + h * e) - phi(x - h * e)) / (2 * h) for e in torch.eye(3, dtype=torch.float64)], 1
    )
    assert_close(phi.transport(x), differences, atol=1e-7, rtol=1e-7)


def test_transport_of_a_relu_network_is_monotone():
    phi = scrambled(activation=F.relu)
    x, y = normal(2, 200, 3, seed=4)
    products = ((phi.transport(x) - phi.transport(y)) * (x - y)).sum(1)
    assert products.min() >= 0


def test_transport_is_detached_unless_asked():
    phi, x = network(), normal(4, 3).requires_grad_()
    assert not phi.transport(x).requires_grad
    T = phi.transport(x, create_graph=True)
    assert T.requires_grad
    T.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in phi.V)


def test_transport_works_without_gradients_and_agrees():
    phi, x = network(), normal(4, 3)
    with torch.no_grad():
        detached = phi.transport(x)
    assert_close(detached, phi.transport(x, create_graph=True).detach())


def test_double_backward():
    phi, x = scrambled(widths=(4, 3)), normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: phi.transport(x, create_graph=True), x)
    assert torch.autograd.gradgradcheck(phi, x)
    V = phi.V[0]

    def as_function_of_weights(V):
        values = {"V.0": V}
        return torch.func.functional_call(phi, values, x.detach())

    assert torch.autograd.gradcheck(as_function_of_weights, V.detach().clone().requires_grad_())


def test_stacks_under_vmap():
    networks, x = [scrambled(seed=s) for s in range(3)], normal(3, 5, 3)
    parameters, buffers = torch.func.stack_module_state(networks)
    call = lambda p, b, x: torch.func.functional_call(networks[0], (p, b), (x,))  # noqa: E731
    together = torch.func.vmap(call)(parameters, buffers, x)
    assert_close(together, torch.stack([phi(z) for phi, z in zip(networks, x, strict=True)]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_shapes_and_determinism(dtype):
    phi, again = network(dtype=dtype), network(dtype=dtype)
    x = normal(2, 5, 3, dtype=dtype)
    assert phi(x).shape == (2, 5)
    assert phi.transport(x).shape == (2, 5, 3)
    assert phi(x).dtype == phi.transport(x).dtype == dtype
    assert torch.equal(phi(x), again(x))
    assert not torch.equal(phi(x), network(dtype=dtype, seed=1)(x))


def test_conjugate_of_a_quadratic():
    phi = network(strong_convexity=0.5)
    with torch.no_grad():
        for p in phi.parameters():
            p.zero_()
    y = normal(6, 3)
    x, low, high = phi.conjugate(y)
    assert_close(x, 2 * y)
    assert_close(low, y.square().sum(1))
    assert_close(high, low)


def test_conjugate_converges_to_the_inverse_map():
    phi, y = scrambled(), 3 * normal(50, 3)
    x, low, high = phi.conjugate(y, tol=1e-9)
    assert_close(phi.transport(x), y, atol=1e-8, rtol=0)
    assert_close(low, high, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_conjugate_bounds_hold_before_convergence(n_steps):
    phi, y = scrambled(), 3 * normal(50, 3)
    exact = phi.conjugate(y, tol=1e-10, n_steps=100)[1]
    _, low, high = phi.conjugate(y, n_steps=n_steps)
    assert (low <= exact + 1e-9).all()
    assert (high >= exact - 1e-9).all()
    if n_steps == 1:
        assert (high - low).max() > 1e-6  # the case is not trivial


def test_upper_bound_of_the_conjugate_is_tight_where_the_modulus_is_attained():
    phi = network(strong_convexity=0.25)
    with torch.no_grad():
        for p in phi.parameters():
            p.zero_()
    y = normal(6, 3)
    x, low, high = phi.conjugate(y, torch.zeros_like(y), n_steps=0)
    assert_close(x, torch.zeros_like(y))
    assert_close(low, torch.zeros_like(low))
    assert_close(high, 2 * y.square().sum(1))  # φ*(y) = |y|²/(2α)


def test_conjugate_obeys_young_and_warm_starts():
    phi, x, y = scrambled(), normal(40, 3), normal(40, 3, seed=5)
    start, _, high = phi.conjugate(y)
    assert (phi(x) + high - (x * y).sum(1)).min() >= 0
    again, low, _ = phi.conjugate(y, start, n_steps=1)
    assert_close(again, start)
    assert_close(low, high)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, (4,)), {}, "d must be a whole number of at least 1"),
        ((2, ()), {}, "widths must name at least one hidden layer"),
        ((2, (4, 0)), {}, "widths must be a whole number"),
        ((2, (4,)), {"strong_convexity": -0.1}, "strong_convexity must lie between 0 and 1"),
        ((2, (4,)), {"strong_convexity": 1.5}, "scale the data"),
    ],
)
def test_icnn_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ICNN(*arguments, **options)


def test_icnn_refuses_a_seed_and_a_conjugate_without_modulus():
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        ICNN(2, (4,), generator=3)
    with pytest.raises(ValueError, match="strong_convexity above 0"):
        network(strong_convexity=0).conjugate(normal(2, 3))


# --- the dual and its plan


def problem(n=12, m=9):
    x, y = normal(n, 2), normal(m, 2, seed=1) + 0.5
    return x, y, sqeuclidean(x, y)


def test_dual_at_the_optimum_is_the_value_of_sinkhorn():
    _, _, C = problem()
    solved = otbook.sinkhorn(C, eps=0.7, tol=1e-11)
    assert_close(stochastic_dual(solved.f, solved.g, C, eps=0.7), solved.value, atol=1e-9, rtol=0)
    assert_close(plan_density(solved.f, solved.g, C, eps=0.7) / 108, solved.plan, atol=1e-10, rtol=0)


def test_quadratic_dual_is_that_of_smooth_ot():
    _, _, C = problem()
    solved = otbook.smooth_ot(C, gamma=0.7 * 108, tol=1e-11)
    options = {"eps": 0.7, "regulariser": "l2"}
    assert_close(stochastic_dual(solved.f, solved.g, C, **options), solved.value, atol=1e-8, rtol=0)
    assert_close(plan_density(solved.f, solved.g, C, **options) / 108, solved.plan, atol=1e-9, rtol=0)
    assert (solved.plan == 0).any()


@pytest.mark.parametrize("regulariser", ["entropy", "l2"])
def test_dual_is_a_lower_bound_and_its_gradient_the_missing_mass(regulariser):
    _, _, C = problem()
    f, g = normal(12, seed=2).requires_grad_(), normal(9, seed=3).requires_grad_()
    options = {"eps": 0.7, "regulariser": regulariser}
    if regulariser == "entropy":
        best = otbook.sinkhorn(C, eps=0.7).value
    else:
        best = otbook.smooth_ot(C, gamma=0.7 * 108).value
    value = stochastic_dual(f, g, C, **options)
    assert value < best
    rows, columns = torch.autograd.grad(value, (f, g))
    h = plan_density(f, g, C, **options).detach()
    assert_close(rows, (1 - h.mean(1)) / 12)
    assert_close(columns, (1 - h.mean(0)) / 9)
    assert torch.autograd.gradcheck(lambda f, g: stochastic_dual(f, g, C, **options), (f, g))


def test_dual_ignores_a_constant_that_moves_from_f_to_g():
    _, _, C = problem()
    f, g = normal(12, seed=2), normal(9, seed=3)
    assert_close(stochastic_dual(f + 3, g - 3, C, eps=0.7), stochastic_dual(f, g, C, eps=0.7))


@pytest.mark.parametrize("regulariser", ["entropy", "l2"])
def test_all_minibatches_average_to_the_whole(regulariser):
    """Exactly unbiased: the mean over all pairs of batches of size (2, 1)."""
    _, _, C = problem(5, 4)
    f, g = normal(5, seed=2), normal(4, seed=3)
    options = {"eps": 0.7, "regulariser": regulariser}
    batches = [
        stochastic_dual(f[[i, k]], g[[j]], C[[i, k]][:, [j]], **options)
        for i in range(5)
        for k in range(5)
        for j in range(4)
    ]
    assert_close(torch.stack(batches).mean(), stochastic_dual(f, g, C, **options))


def test_dual_batches_and_float32():
    f, g, C = normal(3, 5), normal(3, 4), normal(3, 5, 4).square()
    together = stochastic_dual(f, g, C, eps=0.7)
    assert_close(together, torch.stack([stochastic_dual(*fgC, eps=0.7) for fgC in zip(f, g, C, strict=True)]))
    single = stochastic_dual(f.float(), g.float(), C.float(), eps=0.7)
    assert single.dtype == torch.float32
    assert_close(single.double(), together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f": torch.zeros(3, dtype=torch.float64)}, r"f must have shape \(…, 2\)"),
        ({"g": torch.zeros(3, dtype=torch.float64)}, r"g must have shape \(…, 2\)"),
        ({"eps": 0}, "eps must be a finite number above 0"),
        ({"regulariser": "tsallis"}, "regulariser must be one of"),
        ({"C": torch.full((2, 2), math.nan)}, "NaN"),
    ],
)
def test_dual_bad_input(change, message):
    zeros = torch.zeros(2, dtype=torch.float64)
    arguments = {"f": zeros, "g": zeros, "C": torch.eye(2, dtype=torch.float64), "eps": 1.0} | change
    for function in (stochastic_dual, plan_density):
        with pytest.raises(ValueError, match=message):
            function(arguments["f"], arguments["g"], **{k: v for k, v in arguments.items() if k not in "fg"})


# --- barycentric projection


def test_projection_is_the_least_squares_map():
    _, y, C = problem()
    plan = otbook.sinkhorn(C, eps=0.7).plan
    T = barycentric_projection(plan, y)

    def loss(T):
        return (plan * sqeuclidean(T, y)).sum()

    other = T + normal(12, 2, seed=4)
    mass = plan.sum(1)
    assert_close(loss(other) - loss(T), mass @ (other - T).square().sum(1))


def test_projection_of_a_gaussian_plan_shrinks():
    grid = torch.linspace(-6, 6, 300, dtype=torch.float64)[:, None]
    a = torch.softmax(-grid[:, 0].square() / 2, 0)
    plan = otbook.sinkhorn(sqeuclidean(grid, grid), a, a, eps=1.0, tol=1e-10).plan
    inner = grid[:, 0].abs() < 3
    T = barycentric_projection(plan, grid)
    assert_close(T[inner], (math.sqrt(17) - 1) / 4 * grid[inner], atol=1e-3, rtol=0)


def test_projection_needs_no_normalised_rows_and_batches():
    plan, y = normal(2, 5, 4).square(), normal(2, 4, 3)
    T = barycentric_projection(plan, y)
    assert T.shape == (2, 5, 3)
    assert_close(barycentric_projection(7 * plan, y), T)
    assert_close(T[1], barycentric_projection(plan[1], y[1]))
    assert torch.autograd.gradcheck(barycentric_projection, (plan.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([[0.5, 0.5, 0.0]], r"plan must have shape \(…, n, 2\)"),
        ([[0.5, -0.5]], "negative entry"),
        ([[0.5, 0.5], [0.0, 0.0]], "row without mass"),
    ],
)
def test_projection_bad_input(plan, message):
    with pytest.raises(ValueError, match=message):
        barycentric_projection(plan, [[0.0], [1.0]])


# --- Monge gap


def test_gap_of_gradients_of_convex_functions_is_zero():
    x = normal(40, 3)
    assert_close(monge_gap(x, scrambled().transport(x)), torch.tensor(0.0, dtype=torch.float64))
    assert_close(monge_gap(x, x + 2.0), torch.tensor(0.0, dtype=torch.float64))


def test_gap_is_what_is_wasted():
    x = normal(30, 2)
    order = torch.randperm(30, generator=generator())
    gap = monge_gap(x, x[order])  # the best plan between a cloud and itself stays
    assert_close(gap, (x - x[order]).square().sum(1).mean())
    assert gap > 0.5


def test_gap_zero_exactly_for_cyclically_monotone_pairs():
    """Among the images of three points on the line, only the sorted order has no gap."""
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([[2.0], [2.5], [7.0]], dtype=torch.float64)
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        assert (monge_gap(x, y[order]) > 1e-9) == (order != [0, 1, 2])


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_entropic_gap_lies_below_the_exact_one_by_at_most_log_n(cost):
    x, y = normal(25, 3) + 1, normal(25, 3, seed=1) + 1
    exact = monge_gap(x, y, cost=cost)
    for eps in (0.01, 0.1, 1.0):
        entropic = monge_gap(x, y, eps=eps, cost=cost, tol=1e-9)
        assert exact - eps * math.log(25) - 1e-9 <= entropic <= exact + 1e-9
    assert_close(monge_gap(x, y, eps=1e-4, cost=cost), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("eps", [None, 0.5])
def test_gap_invariances_and_gradient(eps):
    x, y = normal(8, 2), normal(8, 2, seed=1)
    options = {"eps": eps, "tol": 1e-11}
    gap = monge_gap(x, y, **options)
    shuffle = torch.randperm(8, generator=generator())
    assert_close(monge_gap(x[shuffle], y[shuffle], **options), gap)
    assert_close(monge_gap(x + 1, y - 2, **options), gap)
    leaf = y.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: monge_gap(x, y, **options), leaf)


def test_gap_batches_and_float32():
    x, y = normal(3, 8, 2), normal(3, 8, 2, seed=1)
    for eps in (None, 0.5):
        gaps = monge_gap(x, y, eps=eps)
        assert gaps.shape == (3,)
        assert_close(gaps[1], monge_gap(x[1], y[1], eps=eps), atol=1e-5, rtol=0)
        single = monge_gap(x.float(), y.float(), eps=eps)
        assert single.dtype == torch.float32
        assert_close(single.double(), gaps, atol=1e-4, rtol=1e-4)


def test_gap_bad_input():
    x = normal(4, 2)
    with pytest.raises(ValueError, match="y_mapped must have the shape of x"):
        monge_gap(x, normal(5, 2))
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        monge_gap(x, x, eps=-1.0)
    with pytest.raises(ValueError, match="cost must be one of"):
        monge_gap(x, x, cost="manhattan")


# --- L2-UVP


def test_uvp_of_the_truth_the_mean_and_the_reflection():
    y = normal(500, 3) + 2
    variance = y.var(0, correction=0).sum()
    mean = y.mean(0).expand_as(y)
    assert_close(l2_uvp(y, y, variance), torch.tensor(0.0, dtype=torch.float64))
    assert_close(l2_uvp(mean, y, variance), torch.tensor(100.0, dtype=torch.float64))
    assert_close(l2_uvp(2 * mean - y, y, variance), torch.tensor(400.0, dtype=torch.float64))


def test_uvp_scales_and_batches():
    T, true = normal(3, 20, 2), normal(3, 20, 2, seed=1)
    scores = l2_uvp(T, true, 2.0)
    assert scores.shape == (3,)
    assert_close(l2_uvp(5 * T, 5 * true, 50.0), scores)
    assert_close(scores[2], l2_uvp(T[2], true[2], 2.0))


def test_uvp_bad_input():
    with pytest.raises(ValueError, match="images of the same points"):
        l2_uvp(normal(4, 2), normal(5, 2), 1.0)
    with pytest.raises(ValueError, match="variance must be a finite number above 0"):
        l2_uvp(normal(4, 2), normal(4, 2), 0.0)


# --- all together


def test_the_dual_gap_is_between_two_multiples_of_the_error():
    """J(φ) − J* ∈ [e/2β, e/2α] for a quadratic φ, whose α and β are eigenvalues."""
    phi = network(d=2, strong_convexity=0.5)
    with torch.no_grad():
        for p in phi.parameters():
            p.zero_()
        phi.Q.copy_(torch.diag(torch.tensor([0.0, 1.0])))  # the Hessian is diag(0.5, 1.5)
    x = normal(200, 2)
    y = x * torch.tensor([0.8, 2.0], dtype=torch.float64)
    gap = (phi(x) + phi.conjugate(y)[2] - (x * y).sum(1)).mean()
    errors = (phi.transport(x) - y).square().mean(0)
    assert errors.sum() / 3 <= gap <= errors.sum() / 1
    assert_close(gap, errors[0] / 1 + errors[1] / 3)


def test_on_another_device(device):
    x, y = normal(20, 3).to(device), normal(20, 3, seed=1).to(device)
    phi = ICNN(3, (8, 8), device=device, dtype=torch.float64)
    assert phi.transport(x).device == device
    if device.type == "cuda":  # the stand-in has no derivatives in forward mode
        assert phi.conjugate(y)[0].device == device
    C = sqeuclidean(x, y)
    solved = otbook.sinkhorn(C, eps=0.5)
    assert_close(stochastic_dual(solved.f, solved.g, C, eps=0.5), solved.value, atol=1e-5, rtol=0)
    T = barycentric_projection(plan_density(solved.f, solved.g, C, eps=0.5), y)
    assert monge_gap(x, T).device == l2_uvp(T, y, 1.0).device == x.device
