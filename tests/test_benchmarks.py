"""The benchmarks themselves: races are fair, nobody is dropped, tables say what was measured."""

from __future__ import annotations

import math
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import otbook
from benchmarks import __main__ as command
from benchmarks import (
    batched,
    dense,
    divergence,
    exact,
    floors,
    gpu,
    gromov,
    growth,
    harness,
    matrix_free,
    memory,
    peers,
    sharded,
    sliced,
)
from benchmarks.harness import Competitor, Row, race, table

TOL = 1e-6


def fake(name="ours", *, decay=0.9, seconds=0.0, log=None, level="iterations"):
    """A competitor whose result is its error, decayⁿ after n iterations."""

    def prepare(_):
        def solve(n):
            if log is not None:
                log.append(name)
            time.sleep(seconds * n)
            return decay**n

        return solve

    return Competitor(name, prepare, float, level=level)


def refusing(error):
    def prepare(_):
        raise error

    return Competitor("peer", prepare, float)


# --- races -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.9, 0.99])
def test_the_number_of_iterations_just_reaches_the_tolerance(decay):
    needed = math.ceil(math.log(TOL) / math.log(decay))
    (row,) = race([fake(decay=decay)], tol=TOL, runs=1)
    assert row.reached
    assert row.error <= TOL
    assert needed <= row.iterations <= 1.05 * needed + 2
    assert row.iterations == row.level


def test_competitors_take_turns():
    log = []
    rows = race([fake("ours", log=log), fake("peer", log=log)], tol=TOL, runs=3)
    assert log[-6:] == ["ours", "peer"] * 3
    assert [len(row.seconds) for row in rows] == [3, 3]


def test_a_method_that_stops_by_itself_is_tightened_until_it_is_right():
    loose = Competitor("peer", lambda _: lambda level: 3 * TOL / 2**level, float, "tightness", lambda r: 7)
    _, row = race([fake(), loose], tol=TOL, runs=2)
    assert (row.level, row.iterations, row.reached) == (2, 7, True)


@pytest.mark.parametrize(
    ("competitor", "problem"),
    [
        (refusing(ModuleNotFoundError("No module named 'x'", name="x")), "not installed (x)"),
        (refusing(RuntimeError("out of luck\nand more")), "failed: RuntimeError: out of luck"),
        (fake("peer", decay=1.0), "failed: the error stalls at 1.0e+00"),
        (fake("peer", decay=math.nan), "failed: error nan"),
        (fake("peer", decay=1.0, level="none"), "failed: error 1.0e+00"),
    ],
)
def test_whoever_fails_keeps_a_line_that_says_why(competitor, problem):
    rows = race([fake(), competitor, fake("other")], tol=TOL, runs=1)
    assert [row.problem for row in rows] == ["", problem, ""]
    line = next(line for line in table("T", rows, tol=TOL).splitlines() if "peer" in line)
    assert line.split(maxsplit=1) == ["peer", problem]


def test_whoever_is_too_slow_gets_a_bound_instead_of_a_ratio():
    rows = race([fake(), fake("peer", decay=0.999, seconds=1e-3)], tol=TOL, runs=1, patience=0.05)
    assert (rows[1].reached, rows[1].problem) == (False, "")
    assert rows[1].error > TOL
    line = table("T", rows, tol=TOL).splitlines()[-2]
    assert "> " in line
    assert line.endswith("tolerance not reached")


def test_a_hopeless_run_is_not_started():
    never = Competitor("peer", lambda _: pytest.fail("started"), float)
    _, row = race([fake(), never], tol=TOL, runs=1, patience=1.0, foresee=lambda _: 60.0)
    assert row.problem.startswith("not run: 60 s foreseen for its shortest run, ")
    assert row.problem.endswith("× ours")


def test_our_own_failure_is_not_hidden():
    rows = race([fake(decay=1.0), fake("peer")], tol=TOL, runs=1)
    text = table("T", rows, tol=TOL)
    assert rows[0].problem.startswith("failed")
    assert "×" not in text


def test_table():
    rows = [
        Row("ours", "", [0.1, 0.3, 0.2], 5e-7, 12, 12, True, 3.4),
        Row("peer", "", [1.0, 3.0, 2.0], 9e-7, 100, 100, True),
        Row("slow", "", [8.0], 2e-3, 64, 64, False),
        Row("gone", "not installed (gone)"),
    ]
    assert table("B0  a race", rows, tol=1e-6).splitlines() == [
        "B0  a race",
        "          median s            spread  runs  iterations     error     MiB     ratio",
        "  ours         0.2           0.1–0.3     3          12   5.0e-07       3     1.00×",
        "  peer           2               1–3     3         100   9.0e-07       –    10.00×",
        "  slow           8                 –     1          64   2.0e-03       –  > 40.00×"
        "  tolerance not reached",
        "  gone  not installed (gone)",
        "  best that reached 1e-06: peer, 10.00×",
    ]


# --- measures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 20])
def test_plans_and_potentials_are_measured_alike(d):
    p = peers.Clouds.normal(40, d, 0.1, TOL, torch.float64)
    generator = torch.Generator().manual_seed(1)
    f, g = (0.1 * p.eps * torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(2))
    result = otbook.sinkhorn(p.C, eps=p.eps, tol=1e-11)
    f, g = result.f + f, result.g + g
    P = ((f[:, None] + g - p.C) / p.eps).exp() / 1600
    assert p.plan_error(P) > 0.01
    assert p.dual_error(f, g) == pytest.approx(p.plan_error(P), rel=1e-9)
    sampled = peers.Clouds(p.x, p.y, p.eps, p.tol, sample=40)
    assert sampled.dual_error(f, g) == pytest.approx(p.plan_error(P), rel=1e-9)
    assert p.dual_error(result.f, result.g) < 1e-10


def test_epsilon_is_a_share_of_the_mean_cost():
    p = peers.Clouds.normal(30, 5, 0.1, TOL, torch.float64)
    assert p.eps == pytest.approx(0.1 * p.C.mean().item(), rel=1e-12)


def test_stationarity_sees_a_plan_that_is_not():
    s = gromov.Spaces(12, 0.2)
    P = otbook.entropic_gromov_wasserstein(s.Cx, s.Cy, eps=s.eps, tol=1e-9).plan
    assert s.error(P) < 1e-6
    tilted = P * (1 + 0.01 * torch.linspace(-1, 1, 12, dtype=P.dtype))
    assert s.error(tilted) > 1e-3


def test_peak_memory_is_that_of_the_call():
    size = 64 * memory.MIB
    assert 60 < memory.growth(lambda: bytearray(b"x" * size)) < 200
    assert memory.growth(lambda: None) < 8
    # In a process of its own, where no other test has left memory behind.
    assert 20 < memory.apart(growth_after_release) < 60


def growth_after_release():
    for _ in range(3):  # freed, but kept by the allocator for the next block below 32 MiB
        torch.ones(7_500_000)
    return memory.growth(lambda: torch.ones(7_000_000))


def test_a_process_of_its_own():
    assert memory.apart(math.hypot, 3.0, 4.0) == 5.0
    assert memory.apart(math.sqrt, -1.0) is None


def test_exponents():
    assert growth.exponent((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_floors_are_rates_of_this_machine():
    for dtype in (torch.float32, torch.float64):
        assert all(1e6 < value < 1e15 for value in floors.rates(dtype, quick=True).values())


def test_time_with_other_processes_is_counted(tmp_path):
    if not hasattr(otbook.entropic, "sinkhorn_sharded"):
        pytest.skip("otbook.entropic has no sinkhorn_sharded")
    case = 60, torch.float64, 1e-9
    sharded.worker(0, 1, str(tmp_path), case, 2)
    part = torch.load(tmp_path / "0.pt")
    p = sharded.problem(*case)
    assert p.dual_error(part["f"], part["g"]) < 1e-8
    assert all(0 < talk < total for total, talk in part["measured"])
    assert len(part["measured"]) == 2


# --- every benchmark, tiny and alone ---------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """No other library can be imported any more, and nothing is repeated."""
    for library in ("ot", "ot.batch", "geomloss", "jax", "ott", "flash_sinkhorn"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(floors, "RUNS", 1)
    monkeypatch.setattr(exact, "RUNS", 1)


RACES = [dense, matrix_free, batched, divergence, exact, sliced, gromov]


@pytest.mark.parametrize("module", RACES, ids=lambda module: module.__name__.split(".")[-1])
def test_every_race_runs_without_peers(module, alone):
    text = "\n".join(module.run(True, patience=0.1))
    lines = text.splitlines()
    assert any(line.strip().startswith("otbook") and line.endswith("1.00×") for line in lines)
    if module is not exact:
        assert sum("not installed" in line for line in lines) >= 2
    else:
        assert "SciPy" in text
        assert "overhead of our call" in text


def test_growth_has_a_line_for_every_solver(alone, monkeypatch):
    names = "sinkhorn, per iteration", "wasserstein_1d", "sliced_wasserstein"
    cheap = {name: growth.SOLVERS[name] for name in names}
    broken = growth.Solver(lambda n: 1 / 0, (100, 200))
    monkeypatch.setattr(growth, "SOLVERS", {**cheap, "broken": broken})
    (text,) = growth.run(True)
    lines = text.splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == [*cheap, "broken"]
    assert "failed: ZeroDivisionError" not in lines[0]
    assert "division by zero" in lines[-1]


def test_floors_are_tabulated(alone):
    first, second = floors.run(True)
    assert len(first.splitlines()) == 6
    assert "stored" in second


@pytest.fixture
def gpu_at_hand(device, monkeypatch):
    """What asks for a GPU gets the device of the test."""
    if device.type != "cuda":
        monkeypatch.setattr(torch.Tensor, "cuda", lambda t: t.to(device))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_a_gpu_and_the_cpu_agree(gpu_at_hand):
    _, *lines = gpu.agreement(60).splitlines()
    assert len(lines) == 12
    for line in lines:
        gap, error = (float(x) for x in re.findall(r"\d\.\de[-+]\d+", line))
        assert "converged True" in line
        assert max(gap, error) <= (1e-9 if "float64" in line else 2e-5)


def test_the_gpu_is_timed(gpu_at_hand):
    ours, *others = race(gpu.competitors(60, 3, 0.1), tol=1e-3, patience=0.1)
    assert ours.reached
    assert ours.median > 0
    assert len(others) == 2


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(gpu.run(False)) == ["no GPU on this machine: nothing measured"]


def test_results_are_kept_with_their_circumstances(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    command.main(["B9", "--quick"])
    assert not list(tmp_path.iterdir())
    command.main(["B9"])
    text = (tmp_path / "B9.txt").read_text(encoding="utf-8")
    assert all(word in text for word in (f"torch {torch.__version__}", "flash-sinkhorn", "nothing measured"))
    assert text.splitlines()[0] in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["B11"])
    assert "unknown benchmark B11" in capsys.readouterr().err


def test_every_benchmark_has_a_module():
    folder = Path(command.__file__).parent
    assert all((folder / f"{module}.py").exists() for module in command.BENCHMARKS.values())
    assert harness.RUNS >= 5
