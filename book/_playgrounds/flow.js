// Playground: a cloud of particles that descends a functional of the reader's choice.

import { MOVE, box, button, choice, clock, digits, hint, inNextFrame, readout, slider } from "./controls.js";
import { generator } from "./math/linear.js";
import * as flows from "./math/particles.js";
import { Plane } from "./plane.js";

const FUNCTIONALS = {
  energy: { name: "energy distance to the target", F: flows.energy, step: 0.01, target: true },
  mmd: { name: "MMD to the target, Gaussian kernel", F: flows.mmd, step: 0.02, target: true },
  divergence: {
    name: "Sinkhorn divergence to the target",
    step: 0.02,
    target: true,
    F: (x, y, memory) => flows.divergence(x, y, { tol: 1e-4, rounds: 30 }, memory),
  },
  svgd: { name: "KL to the blurred target, Stein (SVGD)", F: flows.svgd, step: 0.01, target: true },
  blob: { name: "KL to the blurred target, blob", F: flows.blob, step: 0.002, target: true },
  potential: { name: "potential energy, a double well", F: flows.potential, step: 0.01 },
  interaction: { name: "interaction energy, near repulsion", F: flows.interaction, step: 0.02 },
};

export function start(root, { n = 50, functional = "energy" } = {}) {
  const state = { n, functional, scale: 1, seed: 2 };
  let memory, values, current;

  const panels = box(root, "panels");
  const plane = new Plane(box(panels, "panel"), { x: [-1, 1], y: [-1, 1], label: "Particles and target" });
  const plot = new Plane(box(panels, "panel"), {
    x: [0, 200],
    y: [0, 1],
    axes: true,
    xLabel: "step",
    yLabel: "F, over its first value",
    label: "The functional along the flow",
  });
  const say = readout(root);
  const bar = box(root, "controls");
  choice(
    bar,
    {
      label: "Functional",
      value: functional,
      options: Object.fromEntries(Object.entries(FUNCTIONALS).map(([k, v]) => [k, v.name])),
    },
    (chosen) => ((state.functional = chosen), forget()),
  );
  slider(
    bar,
    {
      label: "Step length ×",
      min: -1,
      max: 1,
      step: 0.1,
      value: 0,
      map: (v) => 10 ** v,
      show: (v) => digits(v, 2),
    },
    (scale) => (state.scale = scale),
  );
  button(bar, "Step", () => (step(), draw()));
  const motion = clock(bar, { step, draw, name: "Run", jump: 100 });
  button(bar, "Start again", () => (motion.stop(), scatter()));
  hint(root, `${MOVE} Red are the particles, blue is the target.`);

  function scatter() {
    const { normal } = generator(state.seed);
    const blob = (p, q, s) =>
      [p + s * normal(), q + s * normal()].map((v) => Math.max(-0.97, Math.min(0.97, v)));
    state.x = Array.from({ length: state.n }, () => blob(-0.55, -0.5, 0.13));
    const centres = [
      [0.5, 0.55],
      [0.55, -0.35],
      [-0.35, 0.6],
    ];
    state.y = Array.from({ length: state.n }, (_, j) => blob(...centres[j % 3], 0.1));
    forget();
  }

  function forget() {
    [memory, values] = [{}, []];
    evaluate();
    draw();
  }

  function evaluate() {
    current = FUNCTIONALS[state.functional].F(state.x, state.y, memory);
  }

  function step() {
    if (!values.length) values.push(current.value);
    const moved = flows.move(state.x, current.v, state.scale * FUNCTIONALS[state.functional].step);
    if (moved.flat().some((value) => !(Math.abs(value) < 1e3))) return false; // the step was too long
    state.x = moved;
    evaluate();
    values.push(current.value);
    return values.length < 2000;
  }

  function draw() {
    const { x, y } = state,
      { target } = FUNCTIONALS[state.functional];
    plane.segments(
      "thin",
      x.map(([p, q], i) => [
        [p, q],
        [p + 0.1 * current.v[i][0], q + 0.1 * current.v[i][1]],
      ]),
    );
    plane.dots("target", y, {
      radius: 4.5,
      title: (j) => `target ${j + 1}`,
      move: (j, point) => ((y[j] = point), touched()),
    });
    plane.dots("source", x, {
      radius: 4.5,
      title: (i) => `particle ${i + 1}`,
      move: (i, point) => ((x[i] = point), touched()),
    });
    plane.layers.get("target").classed("quiet", !target);
    const first = values[0] ?? current.value,
      low = Math.min(0, ...values.map((v) => v / Math.abs(first)));
    plot.show([0, Math.max(200, values.length)], [low, 1]);
    plot.curves("accent", [values.map((value, k) => [k, value / Math.abs(first)])]);
    const speed = Math.sqrt(current.v.reduce((t, [p, q]) => t + p * p + q * q, 0) / x.length);
    say(
      `F = ${digits(current.value)} after ${Math.max(0, values.length - 1)} steps. The speed is ${digits(speed, 2)}` +
        (state.functional === "svgd" ? "." : `, so F falls at the rate ${digits(speed ** 2, 2)}.`),
    );
  }

  const touched = inNextFrame(() => (evaluate(), draw()));
  scatter();
  return { state, frame: () => (step(), draw()), solution: () => current };
}
