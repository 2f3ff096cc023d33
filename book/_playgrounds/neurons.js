// Playground: a two-layer network in training, as a cloud of neurons and as the function that it is.

import { MOVE, box, button, choice, clock, digits, hint, inNextFrame, readout, slider } from "./controls.js";
import { generator } from "./math/linear.js";
import { loss, network, train, velocity } from "./math/two_layer.js";
import { Plane } from "./plane.js";

// Where a neuron (w, b, a) is drawn, and the neuron that a dragged point means.
const VIEWS = {
  wa: { name: "(w, a)", axes: ["w", "a"], to: ([w, , a]) => [w, a], from: ([p, q], [, b]) => [p, b, q] },
  direction: {
    name: "|a| (w, b)",
    axes: ["|a| w", "|a| b"],
    to: ([w, b, a]) => [Math.abs(a) * w, Math.abs(a) * b],
    from: ([p, q], [, , a]) => (Math.abs(a) > 1e-3 ? [p / Math.abs(a), q / Math.abs(a), a] : [p, q, a]),
  },
};
const GRID = Array.from({ length: 121 }, (_, k) => k / 60 - 1);
const SUBSTEPS = 5; // of training, in one frame

export function start(root, { n = 50 } = {}) {
  const state = { n, seed: 4, view: "wa", step: 0.2 };
  state.data = [-0.9, -0.65, -0.4, -0.15, 0.15, 0.4, 0.65, 0.9].map((x) => [x, 0.7 * Math.sin(4 * x)]);
  let losses,
    origin,
    time,
    reach = 4;

  const panels = box(root, "panels");
  const plane = new Plane(box(panels, "panel"), { x: [-4, 4], y: [-4, 4], axes: true, label: "The neurons" });
  const fit = new Plane(box(panels, "panel"), {
    x: [-1, 1],
    y: [-1.5, 1.5],
    axes: true,
    xLabel: "x",
    yLabel: "f(x)",
    label: "The data and the network's function",
  });
  const say = readout(root);
  const bar = box(root, "controls");
  choice(
    bar,
    {
      label: "Plane",
      value: state.view,
      options: Object.fromEntries(Object.entries(VIEWS).map(([k, v]) => [k, v.name])),
    },
    (view) => (([state.view, reach] = [view, 4]), later()),
  );
  slider(bar, { label: "Neurons n =", min: 1, max: 200, step: 1, value: n }, (count) =>
    scatter({ n: count }),
  );
  button(bar, "Step", () => (step(), frame()));
  const motion = clock(bar, { step, draw: frame, name: "Train", jump: 200 });
  button(bar, "New neurons", () => (motion.stop(), scatter({ seed: state.seed + 1 })));
  hint(root, `${MOVE} Data (green) can be moved as well.`);

  function scatter(change = {}) {
    Object.assign(state, change);
    const { normal } = generator(state.seed);
    state.z = Array.from({ length: state.n }, () => [1.2 * normal(), 0.8 * normal(), 1.2 * normal()]);
    forget();
  }

  function forget() {
    [origin, losses, time, reach] = [state.z, [loss(state.z, state.data)], 0, 4];
    frame();
  }

  function step() {
    for (let k = 0; k < SUBSTEPS; k++) state.z = train(state.z, state.data, state.step);
    time += SUBSTEPS * state.step;
    losses.push(loss(state.z, state.data));
    return Number.isFinite(losses.at(-1)) && losses.length < 5000;
  }

  function frame() {
    const { to, from, name, axes } = VIEWS[state.view],
      { z, data } = state;
    const places = z.map(to),
      v = velocity(z, data);
    reach = Math.max(reach, 2 * Math.ceil(Math.max(...places.flat().map(Math.abs)) / 2));
    plane.show([-reach, reach], [-reach, reach]);
    plane.rename(...axes);
    const ends = z.map((neuron, i) => to(neuron.map((value, k) => value + v[i][k])));
    plane.segments(
      "thin",
      places.map((place, i) => [to(origin[i]), place]),
    );
    plane.segments(
      "plan",
      places.map((place, i) => [place, ends[i]]),
    );
    plane.dots("neuron", places, {
      radius: 5,
      title: (i) => `neuron ${i + 1}`,
      move: (i, point) => ((z[i] = from(point, z[i])), later()),
    });
    plane.layers
      .get("neuron")
      .selectAll(".bead")
      .attr("style", (_, i) => `fill: var(--${z[i][2] > 0 ? "target" : "source"})`);
    fit.curves("accent", [GRID.map((x) => [x, network(z, x)])]);
    fit.dots("data", data, {
      title: (k) => `datum ${k + 1}`,
      move: (k, point) => ((data[k] = point), later()),
    });
    say(
      `${name}: ${z.length} neurons, blue where a > 0. Loss ${digits(loss(z, data))} at time ${time.toFixed(0)}; it was ${digits(losses[0])}.`,
    );
  }

  const later = inNextFrame(frame);
  scatter();
  return {
    state,
    frame: () => (step(), frame()),
    solution: () => ({ v: velocity(state.z, state.data), loss: loss(state.z, state.data) }),
  };
}
