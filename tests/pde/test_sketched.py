import itertools

import numpy as np
import pytest
import torch
from pde.reference import SMALL, states_of, theta_of
from torch import Tensor
from unbiased import check_biased_is_caught, check_unbiased

from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.pde import Checkpointing, ReactionDiffusion, Residual, control_loss, plan
from rad.pde.cpu import sketches as states
from rad.pde.cpu.grid import lay_out
from rad.pde.cpu.points import add_loss_gradient
from rad.pde.cpu.sketches import keep, read, sampled_points
from rad.pde.cpu.steps import sweep_back
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    Project,
    SameSample,
    SampledRounding,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

KEY = make_key(3)
EVERY_DRAW = ReactionDiffusion(points=4, steps=3, dt=0.1, diffusion=0.2, dtype=torch.float64)


def gradients(
    problem: ReactionDiffusion, theta: Tensor, sketch: Sketch | Residual, n: int
) -> Tensor:
    """n estimates of dL/dtheta with independent keys: (n, P)."""
    keys = torch.stack([fold_in(KEY, i) for i in range(n)])
    many = theta.expand(n, -1).clone().requires_grad_()
    loss = control_loss(problem, many, sketch, keys)
    return torch.autograd.grad(loss.sum(), many)[0]


def exact_gradient(problem: ReactionDiffusion, theta: Tensor) -> Tensor:
    return gradients(problem, theta, Identity(), 1)[0]


@pytest.mark.parametrize("sketch", [DifferentSample(0.1), DifferentSample(0.1, False)])
def test_the_draws_are_the_sketchs(sketch: DifferentSample) -> None:
    drawn = sampled_points(sketch, 5, 49, 11, KEY)
    for s in range(5):
        expected = sketch.indices((1, 49), fold_in(KEY, 11 + s))[0]
        assert drawn[s].tolist() == expected.tolist()


def all_draws(replacement: bool, k: int) -> list[tuple[int, ...]]:
    draw = itertools.product(range(4), repeat=k)
    return list(draw if replacement else itertools.combinations(range(4), k))


@pytest.mark.parametrize(("replacement", "k"), [(True, 1), (False, 2), (False, 3)])
def test_the_mean_over_all_draws_is_the_exact_gradient_and_the_variance_the_formula(
    replacement: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = theta_of(EVERY_DRAW, 3.0)
    estimates = []
    for draws in itertools.product(all_draws(replacement, k), repeat=4):
        table = np.array(draws, np.int32)
        monkeypatch.setattr(
            states, "sampled_points", lambda _s, m, _n, first, _k, t=table: t[first : first + m]
        )
        sketch = DifferentSample(k / 4, replacement)
        estimates.append(gradients(EVERY_DRAW, theta, sketch, 1)[0])
    every = torch.stack(estimates)
    exact = exact_gradient(EVERY_DRAW, theta)
    assert (every - exact).abs().max() > 0.01 * exact.norm()
    torch.testing.assert_close(every.mean(0), exact, rtol=1e-12, atol=1e-14)
    variance = (every - exact).square().mean(0)
    predicted = variance_formula(EVERY_DRAW, theta, replacement, k)
    torch.testing.assert_close(variance, predicted, rtol=1e-9, atol=1e-15)


def variance_formula(
    problem: ReactionDiffusion, theta: Tensor, replacement: bool, k: int
) -> Tensor:
    """The variance that `control_loss` documents, with dense matrices: (P,)."""
    n, end = problem.inner**2, problem.steps
    phi = torch.stack([state.flatten() for state in states_of(problem, theta)])
    psi = torch.autograd.functional.jacobian(
        lambda theta: torch.stack([s.flatten() for s in states_of(problem, theta)]), theta
    )  # (T + 1, n^2, P)
    target = torch.stack([problem.target(t).flatten() for t in range(end + 1)])
    off = 2 * problem.dt / problem.points**2 * (phi - target)
    off[0] = 0
    x = problem.interior_axis()
    basis = torch.stack(  # dC_t/dtheta: (T, n, P)
        [
            torch.autograd.functional.jacobian(
                lambda theta, t=t: problem.series.evaluate(theta, x, t),
                theta,
            )
            for t in problem.dt * torch.arange(end).double()
        ]
    )
    basis = problem.dt * basis.repeat_interleave(problem.inner, 1)
    steps = [step_matrix(problem, theta, t) for t in range(end)]
    adjoint = [off[end]]
    for t in range(end - 1, -1, -1):
        adjoint.insert(0, steps[t].T @ adjoint[0] + off[t])

    def covariance(z: Tensor) -> Tensor:
        shrink = 1.0 if replacement else (n - k) / (n - 1)
        return shrink / k * (n * torch.diag(z * z) - torch.outer(z, z))

    total = torch.zeros_like(theta)
    for p in range(len(theta)):
        for t in range(end + 1):
            z = psi[t, :, p] * off[t]
            if t < end:
                z = z + basis[t, :, p] * adjoint[t + 1] * phi[t]
            total[p] += covariance(z).sum()
            between = torch.eye(n, dtype=z.dtype)
            for s in range(t + 1, end + 1):
                if s > t + 1:
                    between = steps[s - 1] @ between
                through = basis[t, :, p, None] * between.T
                total[p] += (covariance(phi[t]) @ through @ covariance(off[s]) @ through.T).trace()
    return total


def step_matrix(problem: ReactionDiffusion, theta: Tensor, t: int) -> Tensor:
    """phi_{t+1} = step_matrix phi_t: (n^2, n^2)."""
    n = problem.inner
    neighbours = torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    one = torch.eye(n)
    laplacian = torch.kron(neighbours, one) + torch.kron(one, neighbours) - 4 * torch.eye(n * n)
    time = torch.tensor(t * problem.dt, dtype=torch.float64)
    control = problem.series.evaluate(theta, problem.interior_axis(), time).repeat_interleave(n)
    growth = 1 + problem.dt * control
    return problem.rate * laplacian.double() + torch.diag(growth)


ROUNDED = (StochasticRounding(2), DitheredRounding(3), SampledRounding(0.4, 2))
SKETCHES = (Project(0.3), SameSample(0.3), DifferentSample(0.3, False), *ROUNDED)


@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_the_gradient_is_that_of_the_plain_loop_on_the_same_sketches(sketch: Sketch) -> None:
    theta = theta_of(SMALL)
    phi = states_of(SMALL, theta)
    adjoint = torch.zeros_like(phi[0]).flatten()
    coefficients = torch.zeros_like(theta)
    for t in range(SMALL.steps, -1, -1):
        key = fold_in(KEY, t)

        def read_back(x: Tensor, key: Tensor = key, t: int = t) -> Tensor:
            row = x.reshape(1, -1)
            if isinstance(sketch, SampledRounding):
                chunk = phi[-1:] if t == SMALL.steps else phi[:-1]
                target = (phi[t] - x).reshape(1, -1)
                return on_shared_grid(sketch, torch.stack(list(chunk)), row, target, key)[0]
            return sketch.decompress(sketch.compress(row, key), row.shape, x.dtype, key)[0]

        if t < SMALL.steps:
            x, time = SMALL.interior_axis(), torch.tensor(t * SMALL.dt, dtype=torch.float64)
            basis = torch.autograd.functional.jacobian(
                lambda theta, at=(x, time): SMALL.series.evaluate(theta, *at), theta
            )
            products = (read_back(phi[t]) * adjoint).view(SMALL.inner, -1).sum(1)
            coefficients += SMALL.dt * products @ basis
            adjoint = step_matrix(SMALL, theta, t).T @ adjoint
        if t:
            target = SMALL.target(t)
            dense = not isinstance(sketch, SameSample | DifferentSample | SampledRounding)
            off = read_back(phi[t]) - target.flatten() if dense else read_back(phi[t] - target)
            adjoint = adjoint + 2 * SMALL.dt / SMALL.points**2 * off
    many = theta.clone().requires_grad_()
    (ours,) = torch.autograd.grad(control_loss(SMALL, many, sketch, KEY), many)
    torch.testing.assert_close(ours, coefficients, rtol=1e-9, atol=1e-12)


def on_shared_grid(
    sketch: SampledRounding, chunk: Tensor, row: Tensor, target: Tensor, key: Tensor
) -> Tensor:
    """The estimate of row, a state less `target`, which is known where points are sampled.

    The state is rounded on the grid of its chunk, to which its zero boundary belongs.
    """
    sampling, rounding = sketch.keys(key)
    grid = sketch.rounding.fit(torch.cat([chunk.flatten(), chunk.new_zeros(1)])[None])
    chosen = sketch.sample.indices((1, row.shape[1]), sampling)
    codes = sketch.rounding.round((row + target).gather(1, chosen), grid, rounding, range(1))
    values = sketch.rounding.read(codes, grid, row.dtype, rounding, range(1))
    scaled = (values - target.gather(1, chosen)) * (row.shape[1] / chosen.shape[1])
    return torch.zeros_like(row).scatter_(1, chosen, scaled)


# The paper's grid over 500 steps.
PAPER_GRID = ReactionDiffusion(steps=500)
PAPER_THETA = torch.tensor([7.0, 0.5, -0.3, 0.2, 0.7, -0.4, 0.1], dtype=torch.float64)
KEEP = 0.2
N = 100


@pytest.mark.parametrize("replacement", [True, False])
def test_unbiased_on_the_papers_grid(replacement: bool) -> None:
    estimates = gradients(PAPER_GRID, PAPER_THETA, DifferentSample(KEEP, replacement), N)
    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    check_unbiased(estimates, exact)
    check_biased_is_caught(estimates, exact)


@pytest.mark.parametrize(
    "sketch",
    [
        StochasticRounding(1),
        SampledRounding(0.3, 2),
        Residual(StochasticRounding(1)),
        Residual(SampledRounding(0.3, 2)),
    ],
    ids=repr,
)
def test_rounded_states_are_unbiased_on_the_papers_grid(sketch: Sketch | Residual) -> None:
    estimates = gradients(PAPER_GRID, PAPER_THETA, sketch, N)
    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    check_unbiased(estimates, exact)
    check_biased_is_caught(estimates, exact)


def test_a_residual_of_which_all_is_kept_is_exact() -> None:
    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    (kept,) = gradients(PAPER_GRID, PAPER_THETA, Residual(Identity()), 1)
    torch.testing.assert_close(kept, exact, rtol=1e-5, atol=0)


def test_residuals_at_the_bytes_of_a_sample_have_a_third_of_its_variance() -> None:
    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    errors = []
    for adjoint in (DifferentSample(0.01), Residual(SampledRounding(0.09, 3))):
        assert plan.saved_bytes(PAPER_GRID, adjoint) <= plan.saved_bytes(
            PAPER_GRID, DifferentSample(0.01)
        )
        off = gradients(PAPER_GRID, PAPER_THETA, adjoint, N) - exact
        errors.append(off.square().sum(1).mean())
    assert 3 * errors[1] < errors[0]


def test_one_draw_for_all_steps_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_the_first(
        sketch: DifferentSample, count: int, high: int, first: int, key: Tensor
    ) -> np.ndarray:
        return sampled_points(sketch, 1, high, 0, key).repeat(count, 0)

    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    monkeypatch.setattr(states, "sampled_points", always_the_first)
    estimates = gradients(PAPER_GRID, PAPER_THETA, DifferentSample(KEEP), 1000)  # noisier
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(estimates, exact)


def test_the_sample_of_the_state_before_in_the_loss_gradient_is_caught() -> None:
    exact = exact_gradient(PAPER_GRID, PAPER_THETA)
    estimates = torch.stack([shifted_gradient(fold_in(KEY, i)) for i in range(N)])
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(estimates, exact)


def shifted_gradient(key: Tensor) -> Tensor:
    """The estimator that forms the loss gradient of phi_{t+1} from the sample of phi_t: (P,)."""
    problem, sketch = PAPER_GRID, DifferentSample(KEEP)
    grid = lay_out(problem)
    coefficients = problem.series.matrix(PAPER_THETA).numpy()
    kept = all_kept(problem, PAPER_THETA, sketch, key)
    estimate = read(sketch, grid, (kept,), 0, key)
    adjoint, gradient = np.zeros_like(grid.initial), np.zeros_like(coefficients)
    no_loss = grid._replace(loss_scale=0.0)
    for t in range(problem.steps - 1, -1, -1):
        points, values = estimate.points[t : t + 1], estimate.values[t : t + 1]
        flat = adjoint.reshape(-1)
        add_loss_gradient(grid, t + 1, points[0], values[0], estimate.weight, flat)
        sweep_back(
            no_loss, coefficients, t, points, values, estimate.weight, False, adjoint, gradient
        )
    theta = PAPER_THETA.clone().requires_grad_()
    projected = (problem.series.matrix(theta) * torch.from_numpy(gradient)).sum()
    return torch.autograd.grad(projected, theta)[0]


def all_kept(problem: ReactionDiffusion, theta: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
    loss = control_loss(problem, theta.clone().requires_grad_(), sketch, key)
    (kept,) = [t for t in of_graph(loss) if t.dim() == 2]
    return kept


def of_graph(loss: Tensor) -> list[Tensor]:
    node = loss.grad_fn
    while not hasattr(node, "saved_tensors"):
        node = node.next_functions[0][0]  # type: ignore[union-attr]
    return list(node.saved_tensors)


@pytest.mark.parametrize("sketch", [SameSample(0.2), DifferentSample(0.2, False)])
def test_a_simulation_does_not_depend_on_what_runs_beside_it(sketch: Sketch) -> None:
    theta = torch.stack([theta_of(SMALL, scale) for scale in (1.0, 0.5, 2.0)]).requires_grad_()
    keys = torch.stack([fold_in(KEY, i) for i in range(3)])
    adjoints = [Identity(), sketch, Checkpointing(1)]
    losses = control_loss(SMALL, theta, adjoints, keys)
    (together,) = torch.autograd.grad((losses * torch.tensor([1.0, 2.0, 3.0])).sum(), theta)
    for i, adjoint in enumerate(adjoints):
        alone = theta[i].detach().requires_grad_()
        loss = control_loss(SMALL, alone, adjoint, keys[i])
        assert loss == losses[i]
        assert torch.equal(torch.autograd.grad((i + 1) * loss, alone)[0], together[i])


def test_the_gradient_is_a_function_of_the_key() -> None:
    theta = theta_of(SMALL).requires_grad_()
    loss = control_loss(SMALL, theta, DifferentSample(0.1), KEY)
    first = torch.autograd.grad(loss, theta, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, theta)[0])
    other = control_loss(SMALL, theta, DifferentSample(0.1), fold_in(KEY, 0))
    assert other == loss
    assert not torch.equal(first, torch.autograd.grad(other, theta)[0])


def test_saved_bytes_are_those_of_the_samples() -> None:
    problem = ReactionDiffusion()
    theta = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))

    def saved(adjoint: Sketch | Residual | Checkpointing) -> int:
        return saved_bytes(lambda: control_loss(problem, theta, adjoint, KEY))

    exact = saved(Identity())
    assert exact == plan.saved_bytes(problem, Identity())
    for fraction, k in ((0.1, 97), (0.01, 10), (0.001, 1)):
        kept = saved(DifferentSample(fraction))
        assert kept == pytest.approx(problem.steps * k * 4, rel=0.01)
        assert kept == plan.saved_bytes(problem, DifferentSample(fraction))
    for sketch in (StochasticRounding(3), DitheredRounding(1), SampledRounding(0.05, 2)):
        assert saved(sketch) == plan.saved_bytes(problem, sketch)
        assert saved(Residual(sketch)) == saved(sketch)
    assert exact > 50 * saved(DifferentSample(0.01))
    assert saved(Checkpointing(42)) == plan.saved_bytes(problem, Checkpointing(42))


def test_each_state_kept_owns_its_memory() -> None:
    grid = lay_out(SMALL)
    states_now = torch.rand(4, 9, 8, dtype=torch.float64)
    for sketch in (Identity(), DifferentSample(0.3), Project(0.3)):
        (kept,) = keep(sketch, grid, states_now, 0, KEY)
        assert kept.untyped_storage().nbytes() == 4 * sketch.nbytes((1, 49), torch.float64)


def test_plans_spend_their_budget() -> None:
    problem = ReactionDiffusion()
    assert plan.plan(problem, "different_sample", 0.1).adjoint == DifferentSample(0.1)
    assert plan.plan(problem, "baseline", 0.1).adjoint == Identity()
    for variant in ("different_sample", "checkpointing"):
        for budget, limit in ((350_000, 350_000), ("0.85 MB", 850_000), (0.003, 491_724)):
            options = {"replacement": False} if variant == "different_sample" else {}
            planned = plan.plan(problem, variant, budget, **options)
            assert 0.9 * limit < plan.saved_bytes(problem, planned.adjoint) + 56 <= limit


def test_rounding_spends_its_budget() -> None:
    problem = ReactionDiffusion()
    for variant, bits in (("stochastic_rounding", 3), ("dithered_rounding", 3)):
        planned = plan.plan(problem, variant, 0.1)
        assert (planned.bits, planned.keep_fraction) == (bits, None)
        assert plan.plan(problem, variant, 0.05).bits == 1
    limit = plan.saved_bytes(problem, DifferentSample(0.01))
    for options in ({}, {"bits": 1, "dithered": False}):
        planned = plan.plan(problem, "sampled_rounding", 0.01, **options)
        assert planned.bits == options.get("bits", 2)
        assert 0.9 * limit < plan.saved_bytes(problem, planned.adjoint) <= limit
        residual = plan.plan(problem, "residual_rounding", 0.01, **options)
        assert residual.adjoint == Residual(planned.adjoint)  # type: ignore[arg-type]
        assert (residual.bits, residual.keep_fraction) == (planned.bits, planned.keep_fraction)
    with pytest.raises(UsageError, match="checkpointing has no option bits"):
        plan.plan(problem, "checkpointing", 0.1, bits=2)


@pytest.mark.parametrize(
    ("variant", "budget", "message"),
    [
        ("accumulation", 0.1, "unknown variant 'accumulation'.*checkpointing"),
        ("different_sample", 1.5, "above 1"),
        ("different_sample", 1000, "1000 is too small.*at least 164"),
        ("stochastic_rounding", 0.01, "0.01 is too small for stochastic_rounding.*at least"),
        ("checkpointing", 100, "100 is too small.*at least"),
    ],
)
def test_bad_plans_are_refused(variant: str, budget: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan.plan(ReactionDiffusion(), variant, budget)
