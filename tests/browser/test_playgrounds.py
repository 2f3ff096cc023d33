"""The playgrounds in a real browser: their numbers against otbook, their handling, their speed."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pages
import pytest
import torch
from playwright.sync_api import BrowserContext, Locator, Page
from sphinx.application import Sphinx

import otbook
from otbook import flows, meanfield, onedim, semidiscrete
from otbook.costs import euclidean, sqeuclidean

sys.path.insert(0, str(pages.ROOT / "book/_ext"))
from otbook_playgrounds import PLAYGROUNDS, names

pytestmark = pytest.mark.browser

PAGE = "book/appendix/playgrounds.html"
NAMES = ["flow", "interpolation", "matching", "neurons", "power_diagram", "sinkhorn"]
FRAME = 16.0  # milliseconds, sixty frames a second
LARGEST = 40_000  # bytes of a picture
TOL = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def opened(browser: BrowserContext, base: str, book: Path) -> Iterator[pages.Visit]:
    """The page with all playgrounds, all of them running."""
    assert (book / PAGE).is_file(), f"{PAGE} is not in {book}; build the book with: make book"
    with pages.visit(browser, base, book, PAGE) as visited:
        start_all(visited.page)
        yield visited


def start_all(page: Page) -> None:
    for name in NAMES:
        page.locator(f"figure:has([data-playground={name}])").scroll_into_view_if_needed()
        page.wait_for_function(f"() => document.querySelector('[data-playground={name}]').playground")


def place(page: Page, name: str) -> Locator:
    return page.locator(f"[data-playground={name}]")


def ask(visited: pages.Visit, module: str, body: str, **given: Any) -> Any:
    """What a function body returns that sees the module's exports as ``m``, and the given values by name."""
    address = urljoin(visited.base, f"_static/playgrounds/{module}.js")
    plain = "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value"
    code = f"""async given => {{
        const m = await import({json.dumps(address)});
        const answer = (({", ".join(["m", *given])}) => {{ {body} }})(m, ...Object.values(given));
        return JSON.stringify(answer, {plain});
    }}"""
    return json.loads(visited.page.evaluate(code, given))


def cloud(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


close = partial(torch.testing.assert_close, **TOL)


# --- The same numbers as otbook ------------------------------------------------------------------


def uncertified(C: torch.Tensor, answer: dict[str, Any]) -> list[str]:
    """What keeps prices from proving a matching optimal: slacks below 0, a gap, a wrong cost."""
    f, g = tensor(answer["f"]), tensor(answer["g"])
    slack = C - f[:, None] - g
    matched = slack[torch.arange(len(C)), torch.tensor(answer["sigma"])]
    found = []
    if sorted(answer["sigma"]) != list(range(len(C))):
        found.append("not a permutation")
    if slack.min() < -1e-9:
        found.append(f"a slack of {slack.min():.2g}")
    if matched.abs().max() > 1e-9:
        found.append(f"a matched pair with the slack {matched.abs().max():.2g}")
    if abs(answer["cost"] - otbook.assignment(C)[1].item()) > 1e-9:
        found.append("another cost than otbook.assignment")
    if abs((f.mean() + g.mean()).item() - otbook.emd(C).value.item()) > 1e-9:
        found.append("a dual value that is not otbook.emd's")
    return found


def matching(visited: pages.Visit, x: torch.Tensor, y: torch.Tensor, cost: str) -> dict[str, Any]:
    C = ask(visited, "math/linear", f"return m.costs.{cost}(x, y)", x=x.tolist(), y=y.tolist())
    return ask(visited, "math/assignment", "return m.assignment(C)", C=C)


@pytest.mark.parametrize(("cost", "C"), [("sqeuclidean", sqeuclidean), ("euclidean", euclidean)])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_the_matching_is_certified(opened: pages.Visit, n: int, cost: str, C: Callable) -> None:
    x, y = cloud(n, n), cloud(n, 100 + n)
    assert uncertified(C(x, y), matching(opened, x, y, cost)) == []


def test_spoiled_prices_do_not_certify(opened: pages.Visit) -> None:
    x, y = cloud(7, 1), cloud(7, 2)
    good = matching(opened, x, y, "sqeuclidean")
    sigma, f = good["sigma"], good["f"]
    spoiled = [
        {**good, "f": [f[0] + 1e-3, *f[1:]]},
        {**good, "f": [f[0] - 1e-3, *f[1:]]},
        {**good, "sigma": [sigma[1], sigma[0], *sigma[2:]]},
        {**good, "cost": good["cost"] * 1.001},
    ]
    assert all(uncertified(sqeuclidean(x, y), answer) for answer in spoiled)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
def test_sinkhorn_has_the_potentials_and_the_value_of_otbook(opened: pages.Visit, eps: float) -> None:
    x, y = cloud(12, 3), cloud(9, 4)
    a, b = (torch.arange(1.0, n + 1, dtype=torch.float64) for n in (12, 9))
    a, b, C = a / a.sum(), b / b.sum(), sqeuclidean(x, y)
    result = otbook.sinkhorn(C, a, b, eps=eps, tol=1e-11)
    given = {"C": C.tolist(), "a": a.tolist(), "b": b.tolist(), "eps": eps}
    body = """const r = m.solveSinkhorn(C, a, b, eps, { tol: 1e-11, rounds: 100000 });
              return { ...r, P: m.plan(C, a, b, r.f, r.g, eps) }"""
    ours = ask(opened, "math/entropic", body, **given)
    close(tensor(ours["f"]), result.f)
    close(tensor(ours["g"]), result.g)
    close(tensor(ours["value"]), result.value)
    close(tensor(ours["P"]), result.plan)
    body = """const stable = m.sinkhorn(C, a, b, eps), naive = m.scaling(C, a, b, eps);
              const errors = () => [stable, naive].map((rounds) => rounds.next().value.error);
              return Array.from({ length: 20 }, errors)"""
    stable, naive = tensor(ask(opened, "math/entropic", body, **given)).T
    torch.testing.assert_close(stable, naive, rtol=1e-6, atol=1e-13)


def test_only_the_naive_scaling_breaks_at_small_eps(opened: pages.Visit) -> None:
    C = sqeuclidean(cloud(8, 5), cloud(8, 6) + 1).tolist()
    w = [1 / 8] * 8
    body = """const run = (rounds) => Array.from({ length: 30 }, () => rounds.next().value.error);
              return [run(m.sinkhorn(C, w, w, eps)), run(m.scaling(C, w, w, eps))]"""
    stable, naive = ask(opened, "math/entropic", body, C=C, w=w, eps=2e-4)
    assert all(isinstance(error, float) and math.isfinite(error) for error in stable)
    assert naive[-1] is None, "NaN, which JSON writes as null"


@pytest.mark.parametrize("m", [2, 9, 40])
def test_cells_are_those_of_otbook(opened: pages.Visit, m: int) -> None:
    y, prices = cloud(m, 7), 0.05 * cloud(m, 8)[:, 0]
    cells = semidiscrete.laguerre_cells(y, prices)
    body = "return m.cells(y, p).map((polygon, j) => m.measure(polygon, y[j]))"
    ours = ask(opened, "math/cells", body, y=y.tolist(), p=prices.tolist())
    close(tensor([cell["area"] for cell in ours]), cells.masses)
    close(tensor([cell["cost"] for cell in ours]), cells.costs)
    full = cells.masses > 1e-9
    close(tensor([cell["barycentre"] for cell in ours])[full], cells.barycentres[full])


def test_newton_finds_the_prices_of_otbook(opened: pages.Visit) -> None:
    y = cloud(30, 9)
    body = """let p = y.map(() => 0);
              for (let k = 0; k < 15; k++) p = m.newtonStep(y, p);
              return { p, areas: m.areas(m.cells(y, p)) }"""
    ours = ask(opened, "math/cells", body, y=y.tolist())
    close(tensor(ours["p"]), semidiscrete.solve(y).prices)
    torch.testing.assert_close(tensor(ours["areas"]), torch.full((30,), 1 / 30, dtype=torch.float64))


def test_a_gradient_step_raises_the_dual(opened: pages.Visit) -> None:
    y, prices = cloud(12, 10), 0.02 * cloud(12, 11)[:, 0]
    body = "return m.gradientStep(y, p, tau)"
    after = tensor(ask(opened, "math/cells", body, y=y.tolist(), p=prices.tolist(), tau=0.1))
    cells = semidiscrete.laguerre_cells(y, prices)
    close(after - prices, 0.1 * (cells.masses - 1 / 12))

    def dual(p: torch.Tensor) -> float:
        now = semidiscrete.laguerre_cells(y, p)
        return (now.costs.sum() + now.masses @ p - p.mean()).item()

    assert dual(after) > dual(prices)


BUMPS = [[0.2, 1.0], [0.45, 0.6]], [[0.6, 0.5], [0.85, 1.0]]


def test_the_line_has_the_distance_and_the_map_of_otbook(opened: pages.Visit) -> None:
    n = 200_000
    body = """const [r0, r1] = bumps.map((b) => m.density(b, 60)), q = m.levels(r0, r1);
              const fine = Array.from({ length: n }, (_, k) => (k + 0.5) / n);
              const [x, y] = [m.quantiles(r0, fine), m.quantiles(r1, fine)];
              return { exact: m.squaredDistance(q, m.quantiles(r0, q), m.quantiles(r1, q)), x, y }"""
    ours = ask(opened, "math/line", body, bumps=BUMPS, n=n)
    x, y = tensor(ours["x"]), tensor(ours["y"])
    close(tensor(ours["exact"]), onedim.wasserstein_1d(x, y, p=2) ** 2)
    sample = slice(None, None, 997)
    close(onedim.quantile_map(x[sample], y[sample])(x[sample]), y[sample])


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_interpolation_is_that_of_otbook(opened: pages.Visit, t: float) -> None:
    body = """const q = Array.from({ length: 40 }, (_, k) => (k + 0.5) / 40);
              const [x, y] = bumps.map((b) => m.quantiles(m.density(b), q));
              return { x, y, z: m.displacement(x, y, t) }"""
    ours = {
        key: tensor(value)[:, None] for key, value in ask(opened, "math/line", body, bumps=BUMPS, t=t).items()
    }
    plan = otbook.emd(sqeuclidean(ours["x"], ours["y"])).plan
    points, weights = flows.displacement_interpolation(ours["x"], ours["y"], plan, t, threshold=1e-9)
    assert len(weights) == 40
    close(ours["z"][:, 0], points[:, 0].sort().values)


def test_the_density_on_the_way_has_mass_one_and_its_ends(opened: pages.Visit) -> None:
    body = """const [r0, r1] = bumps.map((b) => m.density(b)), q = m.levels(r0, r1);
              const [x, y] = [m.quantiles(r0, q), m.quantiles(r1, q)];
              const z = m.displacement(x, y, 0.5), middle = m.profile(q, z);
              return { r0, start: m.profile(q, x), middle, moments: m.moments(q, x) }"""
    ours = ask(opened, "math/line", body, bumps=BUMPS)
    places, density = tensor(ours["start"]).T
    bins = (places * 200).long().clamp(max=199)
    inside = ((places * 200).frac() - 0.5).abs() < 0.499
    close(density[inside], tensor(ours["r0"])[bins][inside], rtol=1e-4)
    grid, rho = (torch.arange(200, dtype=torch.float64) + 0.5) / 200, tensor(ours["r0"]) / 200
    assert ours["moments"]["mean"] == pytest.approx((grid @ rho).item(), abs=1e-9)
    variance = (grid**2 @ rho - (grid @ rho) ** 2).item() + 1 / (12 * 200**2)
    assert ours["moments"]["variance"] == pytest.approx(variance, abs=1e-9)
    places, density = tensor(ours["middle"]).T
    assert torch.trapezoid(density, places).item() == pytest.approx(1, abs=0.01)


def log_smoothed(x: torch.Tensor, y: torch.Tensor, s: float) -> torch.Tensor:
    log = -sqeuclidean(x, y) / (2 * s**2) - math.log(2 * math.pi * s**2)
    return log.logsumexp(1) - math.log(len(y))


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "potential": lambda x, y: (4 * (x[:, 0] ** 2 - 0.25) ** 2 + x[:, 1] ** 2).mean(),
    "interaction": lambda x, y: (2 * sqeuclidean(x, x) ** 2 - sqeuclidean(x, x)).mean() / 2,
    "mmd": lambda x, y: flows.mmd2(x, y, bandwidth=0.3),
    "energy": flows.energy_distance,
    "divergence": lambda x, y: otbook.sinkhorn_divergence(x, y, eps=0.05, tol=1e-11),
    "blob": lambda x, y: (log_smoothed(x, x, 0.12) - log_smoothed(x, y, 0.15)).mean(),
}


@pytest.mark.parametrize("functional", LOSSES)
def test_a_flow_moves_as_in_otbook(opened: pages.Visit, functional: str) -> None:
    x, y = cloud(20, 12) - 0.5, cloud(15, 13) - 0.3
    run = flows.particle_flow(x, lambda z: LOSSES[functional](z, y), step=0.01, n_steps=1)
    options = "{ eps: 0.05, tol: 1e-11, rounds: 100000 }" if functional == "divergence" else "{}"
    body = (
        f"const {{ value, v }} = m.{functional}(x, y, {options}); return {{ value, x: m.move(x, v, 0.01) }}"
    )
    ours = ask(opened, "math/particles", body, x=x.tolist(), y=y.tolist())
    close(tensor(ours["value"]), run.losses[0])
    close((tensor(ours["x"]) - x) / 0.01, (run.x - x) / 0.01)


def test_stein_moves_as_in_otbook(opened: pages.Visit) -> None:
    x, y = cloud(20, 14) - 0.5, cloud(15, 15) - 0.3

    def score(z: torch.Tensor) -> torch.Tensor:
        z = z.requires_grad_()
        return torch.autograd.grad(log_smoothed(z, y, 0.15).sum(), z)[0]

    run = flows.svgd(x, score, step=0.01, n_steps=1, bandwidth=0.25)
    moved = ask(
        opened, "math/particles", "return m.move(x, m.svgd(x, y).v, 0.01)", x=x.tolist(), y=y.tolist()
    )
    close((tensor(moved) - x) / 0.01, (run.x - x) / 0.01)


def test_neurons_move_as_in_otbook(opened: pages.Visit) -> None:
    generator = torch.Generator().manual_seed(16)
    z = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    data = torch.randn(11, 2, generator=generator, dtype=torch.float64)
    model = meanfield.TwoLayer.from_measure(z, activation="relu")
    inputs = torch.stack([data[:, 0], torch.ones(11)], 1)
    expected = meanfield.mean_field_velocity(model, inputs, data[:, 1])
    body = "return { v: m.velocity(z, data), f: data.map(([x]) => m.network(z, x)), loss: m.loss(z, data) }"
    ours = ask(opened, "math/two_layer", body, z=z.tolist(), data=data.tolist())
    v = tensor(ours["v"])
    close(v[:, :2], expected[0])
    close(v[:, 2], expected[1])
    close(tensor(ours["f"]), model(inputs).detach())
    close(tensor(ours["loss"]), (model(inputs) - data[:, 1]).square().mean().detach() / 2)


# --- What a reader sees and does -----------------------------------------------------------------


def test_there_is_a_picture_for_each(opened: pages.Visit) -> None:
    assert names() == NAMES
    shown = opened.page.eval_on_selector_all("[data-playground]", "all => all.map(p => p.dataset.playground)")
    assert sorted(shown) == NAMES


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("{playground} mtching\n:alt: A long enough alternative text.", "there is no playground 'mtching'"),
        ("{playground} matching\n:alt: Short.", "needs an option :alt:"),
        ("{playground} matching", "needs an option :alt:"),
    ],
)
def test_the_directive_refuses_what_it_cannot_show(tmp_path: Path, wrong: str, complaint: str) -> None:
    (tmp_path / "index.md").write_text(f"# Page\n\n```{wrong}\n\nCaption.\n```\n", "utf-8")
    warnings = io.StringIO()
    options = {"extensions": ["myst_parser", "otbook_playgrounds"]}
    out = tmp_path / "out"
    Sphinx(tmp_path, None, out, out, "dummy", options, status=None, warning=warnings).build()
    assert complaint in warnings.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_its_picture_is_small(name: str) -> None:
    assert (PLAYGROUNDS / f"pictures/{name}.png").stat().st_size <= LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_it_stands_in_the_place_of_its_picture(opened: pages.Visit, name: str) -> None:
    figure = opened.page.locator(f"figure:has([data-playground={name}])")
    assert place(opened.page, name).is_visible()
    assert not figure.locator("> img").is_visible()
    assert figure.locator("figcaption").is_visible()
    assert "not a number" not in place(opened.page, name).locator(".numbers").inner_text()
    unnamed = "all => all.filter(e => !e.labels.length || !e.labels[0].textContent.trim()).length"
    assert place(opened.page, name).locator("input, select").evaluate_all(unnamed) == 0


CHECKS: dict[str, Callable[[pages.Visit], list[str]]] = {
    "no error in the console": pages.silent,
    "nothing from another host": pages.self_contained,
    "fits a phone": pages.fits_phone,
    "legible in light mode": partial(pages.legible, theme="light"),
    "legible in dark mode": partial(pages.legible, theme="dark"),
    "structured": pages.structured,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_page_passes_with_all_of_them_running(opened: pages.Visit, check: str) -> None:
    assert CHECKS[check](opened) == []


def without_script(browser: BrowserContext, address: str, name: str) -> list[str]:
    """What a reader without JavaScript misses of a playground."""
    context = browser.browser.new_context(java_script_enabled=False, viewport=pages.DESKTOP)
    try:
        page = context.new_page()
        page.goto(address)
        figure = page.locator(f"figure:has([data-playground={name}])")
        picture = figure.locator("img")
        found = []
        if not picture.count() or not picture.is_visible():
            found.append("no picture")
        elif picture.bounding_box()["width"] < 200:
            found.append("the picture is small")
        if page.locator(f"[data-playground={name}]").is_visible():
            found.append("an empty playground is shown")
        return found
    finally:
        context.close()


@pytest.mark.parametrize("name", NAMES)
def test_without_javascript_the_picture_stays(browser: BrowserContext, base: str, name: str) -> None:
    assert without_script(browser, urljoin(base, PAGE), name) == []


def test_a_missing_picture_is_found(browser: BrowserContext, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<figure><div data-playground="flow">text</div></figure>', "utf-8")
    with pages.serve(tmp_path) as address:
        assert without_script(browser, f"{address}page.html", "flow") == [
            "no picture",
            "an empty playground is shown",
        ]


def test_in_print_the_picture_stays(opened: pages.Visit) -> None:
    opened.page.emulate_media(media="print")
    try:
        assert not place(opened.page, "matching").is_visible()
        assert opened.page.locator("figure:has([data-playground=matching]) > img").is_visible()
    finally:
        opened.page.emulate_media(media="screen")


def test_other_pages_load_nothing_of_it(book: Path) -> None:
    assert "playgrounds/playgrounds.js" in (book / PAGE).read_text(encoding="utf-8")
    others = [name for name in pages.built_pages(book) if name != PAGE]
    loading = [name for name in others if "playgrounds/" in (book / name).read_text(encoding="utf-8")]
    shown = [name for name in loading if "data-playground=" in (book / name).read_text(encoding="utf-8")]
    assert loading == shown


def dot(page: Page, name: str, kind: str) -> Locator:
    return place(page, name).locator(f"g.{kind} > g.dot").first


@pytest.mark.parametrize(
    ("name", "kind", "point"),
    [
        ("matching", "source", "x[0]"),
        ("sinkhorn", "target", "y[0]"),
        ("interpolation", "source", "source[0]"),
        ("power_diagram", "target", "y[0]"),
        ("flow", "source", "x[0]"),
        ("neurons", "data", "data[0]"),
    ],
)
def test_the_keyboard_moves_a_point(opened: pages.Visit, name: str, kind: str, point: str) -> None:
    page, ours = opened.page, place(opened.page, name)
    read = f"p => [...p.playground.state.{point}]"
    before, numbers = ours.evaluate(read), ours.locator(".numbers").inner_text()
    first = dot(page, name, kind)
    first.focus()
    assert number(first.get_attribute("aria-label")) == 1
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(100)
    after = ours.evaluate(read)
    assert after[0] > before[0]
    assert after[1] == pytest.approx(before[1], abs=1e-9)
    assert ours.locator(".numbers").inner_text() != numbers
    page.keyboard.press("PageDown")
    label = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert number(label) == 2
    assert ours.locator(f"g.{kind} > g.dot[tabindex='0']").count() == 1, "one stop of the Tab key"
    page.wait_for_timeout(800)
    assert ours.locator("[aria-live]").inner_text() == ours.locator(".numbers").inner_text()


def number(label: str | None) -> int:
    """The k of “source k of n, at …”."""
    return int(re.search(r"(\d+) of \d+", label or "").group(1))


def test_the_mouse_drags_a_point(opened: pages.Visit) -> None:
    page = opened.page
    point = dot(page, "matching", "source")
    point.scroll_into_view_if_needed()
    box = place(page, "matching").locator("svg").first.bounding_box()
    start = point.locator(".bead").bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    moved = place(page, "matching").evaluate("p => p.playground.state.x[0]")
    assert moved == pytest.approx([0.5, 0.5], abs=0.01)
    page.wait_for_timeout(50)
    cost = place(page, "matching").evaluate("p => p.playground.solution().cost")
    x, y = (tensor(place(page, "matching").evaluate(f"p => p.playground.state.{side}")) for side in "xy")
    assert cost == pytest.approx(otbook.emd(sqeuclidean(x, y)).value.item(), abs=1e-9)


def test_a_finger_drags_a_point_and_the_page_stays(browser: BrowserContext, base: str) -> None:
    context = browser.browser.new_context(viewport=pages.PHONE, has_touch=True, is_mobile=True)
    try:
        page = context.new_page()
        page.goto(urljoin(base, PAGE))
        ours = place(page, "matching")
        page.locator("figure:has([data-playground=matching])").scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('[data-playground=matching]').playground")
        page.wait_for_timeout(500)
        point = dot(page, "matching", "source")
        point.scroll_into_view_if_needed()
        mark = point.locator(".bead").bounding_box()
        at = {"x": mark["x"] + mark["width"] / 2, "y": mark["y"] + mark["height"] / 2}
        before, scrolled = ours.evaluate("p => p.playground.state.x[0]"), page.evaluate("() => scrollY")
        touch = partial(context.new_cdp_session(page).send, "Input.dispatchTouchEvent")
        up = -60 if before[1] < 0.5 else 60
        touch({"type": "touchStart", "touchPoints": [at]})
        for k in range(1, 7):
            touch({"type": "touchMove", "touchPoints": [{"x": at["x"], "y": at["y"] + up * k / 6}]})
        touch({"type": "touchEnd", "touchPoints": []})
        after = ours.evaluate("p => p.playground.state.x[0]")
        assert abs(after[1] - before[1]) > 0.1
        assert after[0] == pytest.approx(before[0], abs=0.02)
        assert page.evaluate("() => scrollY") == scrolled
    finally:
        context.close()


def test_less_motion_is_respected(opened: pages.Visit, browser: BrowserContext, base: str) -> None:
    quiet = place(opened.page, "flow").get_by_role("button", name="steps at once")
    counted = "p => Number(p.querySelector('.numbers').textContent.match(/after (\\d+) steps/)[1])"
    before = place(opened.page, "flow").evaluate(counted)
    quiet.click()
    assert place(opened.page, "flow").evaluate(counted) == before + 100
    context = browser.browser.new_context(viewport=pages.DESKTOP, reduced_motion="no-preference")
    try:
        page = context.new_page()
        page.goto(urljoin(base, PAGE))
        page.locator("figure:has([data-playground=flow])").scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('[data-playground=flow]').playground")
        page.wait_for_timeout(300)
        assert place(page, "flow").evaluate(counted) == 0, "nothing moves unasked"
        place(page, "flow").get_by_role("button", name="Run").click()
        page.wait_for_function(f"() => ({counted})(document.querySelector('[data-playground=flow]')) > 5")
        place(page, "flow").get_by_role("button", name="Pause").click()
        page.wait_for_timeout(100)
        stopped = place(page, "flow").evaluate(counted)
        page.wait_for_timeout(200)
        assert place(page, "flow").evaluate(counted) == stopped
    finally:
        context.close()


# --- Speed ---------------------------------------------------------------------------------------

#: The playgrounds at fifty points on each side, and the worst of their options.
SIZES = {
    "matching": "{ n: 50 }",
    "sinkhorn": "{ n: 50 }",
    "interpolation": "{}",
    "power_diagram": "{ m: 50 }",
    "flow": "{ n: 50, functional: 'divergence' }",
    "neurons": "{ n: 50 }",
}


def frame_time(visited: pages.Visit, start: str) -> float:
    """Median milliseconds for one frame, computed and laid out, of what ``start(place)`` returns."""
    return visited.page.evaluate(
        f"""async () => {{
            const figure = document.createElement("figure"), place = document.createElement("div");
            figure.className = "live";
            place.className = "playground";
            figure.append(place);
            document.querySelector("article").append(figure);
            const {{ frame }} = await ({start})(place);
            const times = [];
            for (let k = 0; k < 60; k++) {{
                const begun = performance.now();
                frame();
                place.getBoundingClientRect(); // asks for the layout
                times.push(performance.now() - begun);
                await new Promise(requestAnimationFrame);
            }}
            figure.remove();
            return times.slice(10).sort((a, b) => a - b)[25];
        }}"""
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_fits_sixty_times_into_a_second(opened: pages.Visit, name: str) -> None:
    address = urljoin(opened.base, f"_static/playgrounds/{name}.js")
    start = f"async place => (await import({json.dumps(address)})).start(place, {SIZES[name]})"
    spent = frame_time(opened, start)
    print(f"{name}: {spent:.1f} ms")
    assert spent <= FRAME, f"{name} takes {spent:.1f} ms a frame"


def test_a_slow_frame_is_found(opened: pages.Visit) -> None:
    slow = "async () => ({ frame() { const t = performance.now(); while (performance.now() < t + 20); } })"
    assert frame_time(opened, slow) > FRAME
