// Losses of a cloud x with target y, each with the velocities v_i = −n ∂F/∂x_i of its Wasserstein gradient flow.

import { solveSelf, solveSinkhorn } from "./entropic.js";
import { costs, uniform } from "./linear.js";

const zeros = (x) => x.map(() => [0, 0]);

/** Add scale · slope(x_i − z_k) (x_i − z_k), averaged over k, to v_i; `slope` is a function of |x_i − z_k|². */
function push(v, x, z, scale, slope) {
  x.forEach(([p, q], i) => {
    let right = 0,
      up = 0;
    for (const [r, s] of z) {
      const [d, e] = [p - r, q - s];
      const weight = slope(d * d + e * e);
      right += weight * d;
      up += weight * e;
    }
    v[i][0] += (scale * right) / z.length;
    v[i][1] += (scale * up) / z.length;
  });
  return v;
}

/** The mean of kernel(|x_i − z_k|²) over k, for each i. */
const means = (x, z, kernel) =>
  x.map(([p, q]) => z.reduce((t, [r, s]) => t + kernel((p - r) ** 2 + (q - s) ** 2), 0) / z.length);
const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
const average = (x, z, kernel) => mean(means(x, z, kernel));

/** A double well, V(p, q) = 4 (p² − ¼)² + q². */
export function potential(x) {
  const value = mean(x.map(([p, q]) => 4 * (p * p - 0.25) ** 2 + q * q));
  return { value, v: x.map(([p, q]) => [-16 * p * (p * p - 0.25), -2 * q]) };
}

/** ½ mean W(x_i − x_k) with W(z) = 2 |z|⁴ − |z|²: repulsion nearby, attraction from afar. */
export function interaction(x) {
  return { value: average(x, x, (s) => 2 * s * s - s) / 2, v: push(zeros(x), x, x, -1, (s) => 8 * s - 2) };
}

/** The squared maximum mean discrepancy of the kernel exp(−|x − y|²/2h²). */
export function mmd(x, y, { h = 0.3 } = {}) {
  const k = (s) => Math.exp(-s / (2 * h * h));
  const v = push(push(zeros(x), x, x, 2 / (h * h), k), x, y, -2 / (h * h), k);
  return { value: average(x, x, k) - 2 * average(x, y, k) + average(y, y, k), v };
}

/** The energy distance, which is the discrepancy of the kernel −|x − y|. */
export function energy(x, y) {
  const inverse = (s) => (s > 0 ? 1 / Math.sqrt(s) : 0);
  const v = push(push(zeros(x), x, x, 2, inverse), x, y, -2, inverse);
  return { value: 2 * average(x, y, Math.sqrt) - average(x, x, Math.sqrt) - average(y, y, Math.sqrt), v };
}

/**
 * The Sinkhorn divergence OT_ε(μ, ν) − ½ OT_ε(μ, μ) − ½ OT_ε(ν, ν), with v = 2 (T_μν − T_μμ), the mean
 * partners under the plans. `memory` keeps potentials from one step to the next.
 */
export function divergence(x, y, { eps = 0.05, tol = 1e-7, rounds = 2000 } = {}, memory = {}) {
  const [a, b] = [uniform(x.length), uniform(y.length)];
  const [xy, xx, yy] = [costs.sqeuclidean(x, y), costs.sqeuclidean(x, x), costs.sqeuclidean(y, y)];
  const cross = solveSinkhorn(xy, a, b, eps, { tol, rounds, g0: memory.g });
  const source = solveSelf(xx, eps, { tol: tol * eps, rounds, f0: memory.f });
  const target = solveSelf(yy, eps, { tol: tol * eps, rounds, f0: memory.h });
  Object.assign(memory, { g: cross.g, f: source.f, h: target.f });
  const v = zeros(x);
  const attract = (C, f, g, z, sign) =>
    x.forEach((_, i) => {
      let mass = 0,
        right = 0,
        up = 0;
      z.forEach(([r, s], j) => {
        const weight = Math.exp((f[i] + g[j] - C[i][j]) / eps);
        mass += weight;
        right += weight * r;
        up += weight * s;
      });
      v[i][0] += (sign * 2 * right) / mass;
      v[i][1] += (sign * 2 * up) / mass;
    });
  attract(xy, cross.f, cross.g, y, 1);
  attract(xx, source.f, source.f, x, -1);
  return { value: cross.value - source.value / 2 - target.value / 2, v };
}

/** log π and its gradient, the score, for the mixture π of normal laws of width s around the points y. */
export function smoothed(y, s) {
  const norm = 1 / (2 * Math.PI * s * s);
  const logDensity = (x) =>
    means(x, y, (r) => norm * Math.exp(-r / (2 * s * s))).map((p) => Math.log(p + 1e-300));
  const score = (x) =>
    x.map(([p, q]) => {
      const squares = y.map(([r, t]) => (p - r) ** 2 + (q - t) ** 2),
        least = Math.min(...squares);
      let mass = 0,
        right = 0,
        up = 0;
      y.forEach(([r, t], j) => {
        const weight = Math.exp((least - squares[j]) / (2 * s * s));
        mass += weight;
        right += weight * (r - p);
        up += weight * (t - q);
      });
      return [right / (mass * s * s), up / (mass * s * s)];
    });
  return { logDensity, score };
}

/** KL(μ_h ‖ π) of particles blurred by a normal kernel of width h: mean of log (φ_h ∗ μ) − log π. */
export function blob(x, y, { h = 0.12, s = 0.15 } = {}) {
  const { logDensity, score } = smoothed(y, s);
  const kernel = (r) => Math.exp(-r / (2 * h * h)) / (2 * Math.PI * h * h);
  const rho = means(x, x, kernel),
    log = logDensity(x),
    n = x.length;
  const v = score(x);
  x.forEach(([p, q], i) =>
    x.forEach(([r, t], k) => {
      const weight = (kernel((p - r) ** 2 + (q - t) ** 2) * (1 / rho[i] + 1 / rho[k])) / (n * h * h);
      v[i][0] += weight * (p - r);
      v[i][1] += weight * (q - t);
    }),
  );
  return { value: mean(rho.map((density, i) => Math.log(density) - log[i])), v };
}

/** Stein's variational descent: v_i = mean over k of k(x_k, x_i) s(x_k) + ∇_{x_k} k(x_k, x_i). */
export function svgd(x, y, { h = 0.25, s = 0.15 } = {}) {
  const score = smoothed(y, s).score(x),
    n = x.length;
  const v = x.map(([p, q]) => {
    let right = 0,
      up = 0;
    x.forEach(([r, t], k) => {
      const weight = Math.exp(-((p - r) ** 2 + (q - t) ** 2) / (2 * h * h));
      right += weight * (score[k][0] + (p - r) / (h * h));
      up += weight * (score[k][1] + (q - t) / (h * h));
    });
    return [right / n, up / n];
  });
  return { value: blob(x, y, { s }).value, v };
}

/** One step of Euler's method. */
export const move = (x, v, step) => x.map(([p, q], i) => [p + step * v[i][0], q + step * v[i][1]]);
