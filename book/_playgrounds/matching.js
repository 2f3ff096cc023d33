// Playground: the optimal matching between two clouds, and the prices that prove it.

import { MOVE, box, button, choice, digits, hint, inNextFrame, readout, slider } from "./controls.js";
import { assignment, slacks } from "./math/assignment.js";
import { costs, generator } from "./math/linear.js";
import { Matrix } from "./matrix.js";
import { Plane } from "./plane.js";

export function start(root, { n = 12 } = {}) {
  const state = { n, seed: 1, cost: "sqeuclidean" };
  let solution;

  const panels = box(root, "panels");
  const plane = new Plane(box(panels, "panel"), { label: "Sources and targets" });
  const matrix = new Matrix(box(panels, "panel"), {
    label: "Slacks C − f − g: nowhere negative, zero on the matched pairs, which are framed",
  });
  const say = readout(root);
  const bar = box(root, "controls");
  choice(
    bar,
    {
      label: "Cost",
      value: state.cost,
      options: { sqeuclidean: "|x − y|², squared", euclidean: "|x − y|, distance" },
    },
    (cost) => refresh({ cost }),
  );
  slider(bar, { label: "Points on each side:", min: 2, max: 50, step: 1, value: n }, (count) =>
    scatter({ n: count }),
  );
  button(bar, "New points", () => scatter({ seed: state.seed + 1 }));
  hint(root, MOVE);

  function scatter(change = {}) {
    Object.assign(state, change);
    const { uniform } = generator(state.seed);
    const draw = () => [0.03 + 0.94 * uniform(), 0.03 + 0.94 * uniform()];
    state.x = Array.from({ length: state.n }, draw);
    state.y = Array.from({ length: state.n }, draw);
    frame();
  }

  function refresh(change) {
    Object.assign(state, change);
    later();
  }

  /** With the cost |x − y| prices are radii: discs of the two colours never overlap, and matched ones touch. */
  function radii(f, g) {
    const [low, high] = [-Math.min(...f), Math.min(...g)]; // shifts that leave no f, no g negative
    const shift = (low + high) / 2;
    return [f.map((value) => value + shift), g.map((value) => value - shift)];
  }

  function frame() {
    const { x, y } = state;
    const C = costs[state.cost](x, y);
    solution = { C, ...assignment(C) };
    const { sigma, f, g, cost } = solution;
    const slack = slacks(C, f, g);

    const [r, s] = state.cost === "euclidean" ? radii(f, g) : [[], []];
    plane.circles("source discs", r.length ? x : [], r, (i) => r[i] < 0);
    plane.circles("target discs", s.length ? y : [], s, (j) => s[j] < 0);
    plane.segments(
      "plan",
      x.map((point, i) => [point, y[sigma[i]]]),
    );
    plane.dots("source", x, {
      title: (i) => `source ${i + 1}`,
      move: (i, point) => ((x[i] = point), later()),
    });
    plane.dots("target", y, {
      title: (j) => `target ${j + 1}`,
      move: (j, point) => ((y[j] = point), later()),
    });

    // Targets in the order of their sources, so that the matched pairs stand on the diagonal.
    const order = (row) => Array.from(sigma, (j) => row[j]);
    matrix.draw(slack.map(order), { f, g: order(g), pairs: x.map((_, i) => i), shade: Math.sqrt });

    const least = Math.min(...slack.map((row) => Math.min(...row)));
    const matched = Math.max(...slack.map((row, i) => Math.abs(row[sigma[i]])));
    const dual = (f.reduce((t, v) => t + v) + g.reduce((t, v) => t + v)) / x.length;
    say(
      `Mean cost ${digits(cost)} = mean f + mean g, to ${digits(Math.abs(cost - dual))}. ` +
        `Least slack ${digits(Math.abs(least) < 1e-12 ? 0 : least)}; on matched pairs at most ${digits(matched)}.`,
    );
  }

  const later = inNextFrame(frame);
  scatter();
  return { state, frame, solution: () => solution };
}
