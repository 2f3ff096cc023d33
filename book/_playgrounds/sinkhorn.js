// Playground: Sinkhorn's algorithm at an ε of the reader's choice, stable and naive.

import { MOVE, box, button, digits, hint, inNextFrame, readout, slider, still } from "./controls.js";
import { plan, scaling, sinkhorn } from "./math/entropic.js";
import { density } from "./math/line.js";
import { dot } from "./math/linear.js";
import { Matrix } from "./matrix.js";
import { Plane } from "./plane.js";

const TOL = 1e-12,
  LIMIT = 500,
  BATCH = 20; // rounds in all, and in one frame

export function start(root, { n = 50, eps = 0.01 } = {}) {
  const state = {
    eps,
    x: [
      [0.14, 1],
      [0.36, 0.6],
    ],
    y: [
      [0.58, 0.5],
      [0.84, 1],
    ],
  };
  const grid = Array.from({ length: n }, (_, k) => (k + 0.5) / n);
  const C = grid.map((x) => Float64Array.from(grid, (y) => (x - y) ** 2));
  let a, b, stable, naive, result, errors, crude;

  const panels = box(root, "panels");
  const matrix = new Matrix(box(panels, "panel"), {
    label: "The plan P, with the potentials f and g along its sides",
  });
  const side = box(panels, "panel");
  const bumps = new Plane(side, {
    y: [0, 1.1],
    height: 150,
    label: "The weights a and b, each with two bumps",
  });
  const plot = new Plane(side, {
    x: [0, LIMIT],
    y: [1e-13, 4],
    height: 250,
    axes: true,
    log: true,
    xLabel: "round",
    yLabel: "marginal error",
    label: "Marginal error after each round",
  });
  plot.svg.append("text").attr("class", "legend accent").attr("x", 290).attr("y", 11).text("log domain");
  plot.svg.append("text").attr("class", "legend source").attr("x", 362).attr("y", 11).text("naive");
  const say = readout(root);
  const bar = box(root, "controls");
  slider(
    bar,
    {
      label: "ε =",
      min: -4,
      max: 0,
      step: 0.05,
      value: Math.log10(eps),
      map: (v) => 10 ** v,
      show: (v) => digits(v, 2),
    },
    (value) => ((state.eps = value), later()),
  );
  button(bar, "Move the bumps together", () => ((state.y = state.x.map((bump) => [...bump])), later()));
  hint(root, MOVE);

  function restart() {
    const weights = (list) => {
      const rho = density(list, n);
      return Float64Array.from(rho, (value) => value / n);
    };
    [a, b] = [weights(state.x), weights(state.y)];
    [stable, naive] = [sinkhorn(C, a, b, state.eps), scaling(C, a, b, state.eps)];
    [errors, crude] = [[], []];
  }

  const broken = () => crude.length > 0 && !Number.isFinite(crude.at(-1)[1]);

  /** Some more rounds of both; false when the stable one is done. */
  function iterate(rounds) {
    while (rounds-- > 0) {
      if (errors.length >= LIMIT || errors.at(-1)?.[1] <= TOL) return false;
      result = stable.next().value;
      errors.push([errors.length + 1, Math.max(result.error, 1e-16)]);
      if (broken()) continue;
      crude.push([crude.length + 1, Math.max(naive.next().value.error, 1e-16)]); // NaN stays NaN
    }
    return true;
  }

  function draw() {
    const { f, g, error } = result,
      P = plan(C, a, b, f, g, state.eps);
    matrix.draw(P, { f, g, shade: Math.sqrt });
    const outline = (w) => grid.map((x, k) => [x, w[k] / Math.max(...a, ...b)]);
    bumps.curves("source curve", [outline(a)]);
    bumps.curves("target curve", [outline(b)]);
    for (const [name, side] of [
      ["source", "x"],
      ["target", "y"],
    ]) {
      bumps.segments(
        `${name} stems`,
        state[side].map(([centre, height]) => [
          [centre, 0],
          [centre, height],
        ]),
      );
      bumps.dots(name, state[side], {
        title: (k) => `bump of the ${name} ${k + 1}`,
        move: (k, [centre, height]) => (
          (state[side][k] = [centre, Math.min(Math.max(height, 0.05), 1)]),
          later()
        ),
      });
    }
    const seen = broken() ? crude.slice(0, -1) : crude;
    plot.curves("accent", [errors]);
    plot.curves("source dashed", [seen]);
    const [k, e] = seen.at(-1) ?? [1, 1],
      [u, v] = [LIMIT / 60, 10 ** 0.25];
    plot.segments(
      "cross",
      broken()
        ? [
            [
              [k - u, e / v],
              [k + u, e * v],
            ],
            [
              [k - u, e * v],
              [k + u, e / v],
            ],
          ]
        : [],
    );
    const value = dot(a, f) + dot(b, g);
    const cost = P.reduce((t, row, i) => t + dot(row, C[i]), 0);
    say(
      `ε = ${digits(state.eps, 2)}: value ${digits(value)}, cost ${digits(cost)}; round ${errors.length}, marginal error ${digits(error, 2)}. ` +
        (broken()
          ? `The naive scaling broke in round ${crude.length}: a division by 0 or an overflow.`
          : "The naive scaling holds."),
    );
  }

  /** One frame: some rounds and a picture. What remains to be done follows in the next frames. */
  function frame() {
    const more = iterate(still() ? LIMIT : BATCH);
    draw();
    if (more && errors.length < LIMIT) continued();
  }
  const continued = inNextFrame(() => root.isConnected && frame());
  const later = inNextFrame(() => (restart(), frame()));

  restart();
  frame();
  const once = () => (restart(), iterate(BATCH), draw());
  return {
    state,
    frame: once,
    finish: () => (iterate(LIMIT), draw()),
    solution: () => ({ ...result, a, b, C, rounds: errors.length }),
  };
}
