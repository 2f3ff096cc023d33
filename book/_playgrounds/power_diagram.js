// Playground: cells that prices carve out of a square, and how prices are found that make them equal.

import { MOVE, box, button, clock, digits, hint, inNextFrame, readout, slider } from "./controls.js";
import { areas, cells, centred, gradientStep, measure, newtonStep, unevenness } from "./math/cells.js";
import { generator } from "./math/linear.js";
import { Plane } from "./plane.js";

export function start(root, { m = 12 } = {}) {
  const state = { m, seed: 3, chosen: 0 };
  let history, masses;

  const panels = box(root, "panels");
  const plane = new Plane(box(panels, "panel"), { label: "Points and their cells in the unit square" });
  const plot = new Plane(box(panels, "panel"), {
    x: [0, 40],
    y: [1e-16, 2],
    axes: true,
    log: true,
    xLabel: "step",
    yLabel: "Σ |area − 1/m|",
    label: "How unequal the areas are, step after step",
  });
  const say = readout(root);
  const bar = box(root, "controls");
  const price = slider(
    bar,
    {
      label: "Price of the chosen point:",
      min: -0.3,
      max: 0.3,
      step: 0.005,
      value: 0,
      show: (v) => v.toFixed(3),
    },
    (value) => ((state.prices[state.chosen] = value), forget()),
  );
  button(bar, "Newton step", () => (newton(), frame()));
  button(bar, "Gradient step", () => (gradient(), frame()));
  clock(bar, { step: gradient, draw: frame, name: "Gradient ascent", jump: 20 });
  button(bar, "Points to barycentres", lloyd);
  button(bar, "Prices 0", () => (state.prices.fill(0), forget()));
  slider(bar, { label: "Points:", min: 2, max: 50, step: 1, value: m }, (count) => scatter({ m: count }));
  button(bar, "New points", () => scatter({ seed: state.seed + 1 }));
  hint(root, MOVE);

  function scatter(change = {}) {
    Object.assign(state, change, { chosen: 0 });
    const { uniform } = generator(state.seed);
    state.y = Array.from({ length: state.m }, () => [
      0.03 + 0.94 * uniform(),
      0.03 + 0.94 * uniform() ** 1.7,
    ]);
    state.prices = new Array(state.m).fill(0);
    history = [];
    frame();
  }

  function forget() {
    history = [];
    later();
  }

  function advance(next) {
    state.prices = next;
    const error = unevenness(areas(cells(state.y, next)));
    history.push(error);
    return error > 1e-14;
  }
  function gradient() {
    return advance(gradientStep(state.y, state.prices));
  }

  /** Newton's method starts where all cells have mass: at equal prices, if it must. */
  function newton() {
    if (Math.min(...areas(cells(state.y, state.prices))) <= 1e-9) state.prices.fill(0);
    return advance(newtonStep(state.y, state.prices));
  }

  function lloyd() {
    state.y = cells(state.y, state.prices).map((polygon, j) => measure(polygon, state.y[j]).barycentre);
    forget();
  }

  function frame() {
    const { y, prices, m } = state,
      polygons = cells(y, prices);
    masses = areas(polygons);
    if (!history.length) history = [unevenness(masses)];
    const tint = (j) => {
      const share = Math.max(-1, Math.min(1, masses[j] * m - 1));
      const colour = share > 0 ? "var(--source)" : "var(--target)";
      return `fill: color-mix(in srgb, ${colour} ${(55 * Math.abs(share)).toFixed(1)}%, transparent)`;
    };
    plane.curves(
      "cells",
      polygons.map((polygon) => polygon.map((p) => [p.x, p.y])),
      { closed: true, style: tint },
    );
    plane.dots("target", y, {
      title: (j) => `point ${j + 1}`,
      select: choose,
      move: (j, point) => ((y[j] = apart(j, point)), forget()),
    });
    plane.layers
      .get("target")
      .selectAll("g")
      .classed("chosen", (_, j) => j === state.chosen);
    plot.show([0, Math.max(40, history.length)], [1e-16, 2]);
    plot.curves("accent", [history.map((error, k) => [k, Math.max(error, 1e-16)])]);
    price.set(prices[state.chosen]);
    const empty = masses.filter((mass) => mass <= 1e-12).length;
    say(
      `Areas from ${digits(Math.min(...masses))} to ${digits(Math.max(...masses))}, where 1/m = ${digits(1 / m)}; ` +
        `Σ |area − 1/m| = ${digits(history.at(-1), 2)} after ${history.length - 1} steps. ` +
        (empty ? `Without a cell: ${empty} of ${m}. ` : "") +
        `Point ${state.chosen + 1} has the area ${digits(masses[state.chosen])}.`,
    );
  }

  function choose(j) {
    if (state.chosen === j) return;
    state.chosen = j;
    later();
  }

  /** Two points in one place would share a cell. */
  function apart(j, [p, q]) {
    const taken = state.y.some(([r, s], k) => k !== j && Math.hypot(p - r, q - s) < 1e-3);
    return taken ? state.y[j] : [p, q];
  }

  const later = inNextFrame(frame);
  scatter();
  return {
    state,
    frame,
    newton: () => (newton(), frame()),
    gradient: () => (gradient(), frame()),
    solution: () => ({ masses, prices: centred(state.prices) }),
  };
}
