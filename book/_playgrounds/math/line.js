// Transport on the line: densities constant on each bin of [0, 1], their quantiles, and two ways between them.

import { sum } from "./linear.js";

/** A density with bumps [centre, height], sampled in the middle of each bin and normalised. */
export function density(bumps, bins = 200, width = 0.045) {
  const values = Array.from(
    { length: bins },
    (_, k) =>
      sum(
        bumps.map(
          ([centre, height]) => height * Math.exp(-(((k + 0.5) / bins - centre) ** 2) / (2 * width ** 2)),
        ),
      ) + 1e-6,
  );
  const mass = sum(values) / bins;
  return values.map((value) => value / mass);
}

/** The distribution function at the edges of the bins, from 0 to 1. */
export function cdf(rho) {
  const F = [0];
  for (const value of rho) F.push(F.at(-1) + value / rho.length);
  return F.map((value) => value / F.at(-1));
}

/** The quantile function of increasing levels q: on each bin the inverse of a straight line. */
export function quantiles(rho, levels) {
  const F = cdf(rho);
  let k = 0;
  return levels.map((q) => {
    while (k < rho.length - 1 && F[k + 1] < q) k++;
    return (k + (q - F[k]) / (F[k + 1] - F[k])) / rho.length;
  });
}

/** All levels at which one of two quantile functions bends: between them both are straight. */
export const levels = (rho0, rho1) => [...cdf(rho0), ...cdf(rho1)].sort((p, q) => p - q);

/** W₂² = ∫ (x(q) − y(q))² dq, exactly, for quantile functions that are straight between the levels. */
export function squaredDistance(q, x, y) {
  let total = 0;
  for (let k = 1; k < q.length; k++) {
    const [d, e] = [x[k - 1] - y[k - 1], x[k] - y[k]];
    total += ((q[k] - q[k - 1]) * (d * d + d * e + e * e)) / 3;
  }
  return total;
}

/** Everybody goes straight ahead: the quantile functions mix, x_t(q) = (1 − t) x(q) + t y(q). */
export const displacement = (x, y, t) => x.map((value, k) => (1 - t) * value + t * y[k]);

/** The density of quantiles z at levels q, as points (z, ρ): the mass between two levels, over its length. */
export function profile(q, z) {
  const points = [];
  for (let k = 1; k < q.length; k++) {
    if (z[k] - z[k - 1] > 1e-9 && q[k] - q[k - 1] > 1e-9) {
      points.push([(z[k] + z[k - 1]) / 2, (q[k] - q[k - 1]) / (z[k] - z[k - 1])]);
    }
  }
  return points;
}

/** Nobody moves, the densities fade: (1 − t) ρ₀ + t ρ₁. */
export const mixture = (rho0, rho1, t) => rho0.map((value, k) => (1 - t) * value + t * rho1[k]);

/** Mean and variance of the law with quantile function z, straight between the levels q. */
export function moments(q, z) {
  let mean = 0,
    square = 0;
  for (let k = 1; k < q.length; k++) {
    const mass = q[k] - q[k - 1];
    mean += (mass * (z[k - 1] + z[k])) / 2;
    square += (mass * (z[k - 1] ** 2 + z[k - 1] * z[k] + z[k] ** 2)) / 3;
  }
  return { mean, variance: square - mean ** 2 };
}
