// Playground: two ways from one density to another. Mass that moves, and mass that fades out and in.

import { MOVE, box, clock, digits, hint, inNextFrame, readout, slider } from "./controls.js";
import {
  density,
  displacement,
  levels,
  mixture,
  moments,
  profile,
  quantiles,
  squaredDistance,
} from "./math/line.js";
import { Plane } from "./plane.js";

const BINS = 800,
  EVERY = 8,
  TRACKS = Array.from({ length: 25 }, (_, k) => (k + 0.5) / 25);

export function start(root, { t = 0.4 } = {}) {
  const state = {
    t,
    source: [
      [0.13, 0.9],
      [0.3, 0.5],
    ],
    target: [
      [0.62, 0.4],
      [0.86, 0.8],
    ],
  };
  let rho0, rho1, q, x, y, tracks, squared;

  const panels = box(root, "panels");
  const plane = new Plane(box(panels, "panel"), {
    height: 300,
    y: [0, 1.15],
    label: "Densities: source, target, and both ways between them",
  });
  const time = new Plane(box(panels, "panel"), {
    height: 300,
    axes: true,
    xLabel: "place",
    yLabel: "time t",
    label: "The paths of 25 equal shares of the mass, from the source below to the target above",
  });
  const say = readout(root);
  const bar = box(root, "controls");
  const control = slider(
    bar,
    { label: "t =", min: 0, max: 1, step: 0.01, value: t, show: (v) => v.toFixed(2) },
    (value) => ((state.t = value), later()),
  );
  const forward = () => {
    state.t = state.t >= 1 ? 0 : Math.min(1, state.t + 0.01);
    control.set(state.t);
    return state.t < 1;
  };
  clock(bar, { step: forward, draw: frame, name: "Play", jump: 25 });
  hint(root, `${MOVE} Its height is the weight of its bump.`);

  function frame() {
    [rho0, rho1] = [density(state.source, BINS), density(state.target, BINS)];
    q = levels(rho0, rho1);
    [x, y] = [quantiles(rho0, q), quantiles(rho1, q)];
    tracks = [quantiles(rho0, TRACKS), quantiles(rho1, TRACKS)];
    squared = squaredDistance(q, x, y);

    const z = displacement(x, y, state.t),
      mixed = mixture(rho0, rho1, state.t);
    const top = Math.max(...rho0, ...rho1);
    const scaled = (values) =>
      values.map((value, k) => [(k + 0.5) / BINS, value / top]).filter((_, k) => k % 4 === 0);
    plane.curves("source curve", [scaled(rho0)]);
    plane.curves("target curve", [scaled(rho1)]);
    plane.curves("plan dashed", [scaled(mixed)]);
    const some = (_, k) => k % EVERY === 0; // the mean density between every eighth level: fewer and smoother points
    const moved = profile(q.filter(some), z.filter(some)).map(([place, value]) => [place, value / top]);
    plane.curves("accent filled", [[[0, 0], ...moved, [1, 0]]]);
    for (const side of ["source", "target"]) {
      plane.segments(
        `${side} stems`,
        state[side].map(([centre, height]) => [
          [centre, 0],
          [centre, height],
        ]),
      );
      plane.dots(side, state[side], {
        title: (k) => `bump of the ${side} ${k + 1}`,
        move: (k, [centre, height]) => (
          (state[side][k] = [centre, Math.min(Math.max(height, 0.05), 1)]),
          later()
        ),
      });
    }
    time.curves(
      "thin",
      TRACKS.map((_, k) => [
        [tracks[0][k], 0],
        [tracks[1][k], 1],
      ]),
    );
    time.curves("plan now", [
      [
        [0, state.t],
        [1, state.t],
      ],
    ]);
    time.marks(
      "marks",
      TRACKS.map((_, k) => [(1 - state.t) * tracks[0][k] + state.t * tracks[1][k], state.t]),
    );

    const [m, m0, m1] = [z, x, y].map((values) => moments(q, values));
    const mean = (1 - state.t) * m0.mean + state.t * m1.mean;
    const faded =
      (1 - state.t) * (m0.variance + m0.mean ** 2) + state.t * (m1.variance + m1.mean ** 2) - mean ** 2;
    say(
      `W₂ = ${digits(Math.sqrt(squared))}. At t = ${state.t.toFixed(2)} the moving mass (filled) is ${digits(state.t * Math.sqrt(squared))} away ` +
        `from the source and has the variance ${digits(m.variance)}; the mixture (dashed) has ${digits(faded)}.`,
    );
  }

  const later = inNextFrame(frame);
  frame();
  return { state, frame, solution: () => ({ rho0, rho1, q, x, y, squared }) };
}
