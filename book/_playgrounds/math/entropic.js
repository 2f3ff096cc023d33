// Sinkhorn's algorithm twice: with potentials, stable at every ε, and with scalings, which overflow.

import { balance, dot, transpose, uniform } from "./linear.js";

/** The soft minimum −ε log Σ_j b_j exp((g_j − C_ij)/ε), one number for each row of C. */
export function softmin(C, g, b, eps) {
  const h = g.map((value, j) => value / eps + Math.log(b[j]));
  return Float64Array.from(C, (row) => {
    let top = -Infinity,
      total = 0;
    for (let j = 0; j < h.length; j++) top = Math.max(top, h[j] - row[j] / eps);
    for (let j = 0; j < h.length; j++) total += Math.exp(h[j] - row[j] / eps - top);
    return -eps * (top + Math.log(total));
  });
}

/**
 * Rounds of f ← softmin of C − g, then g ← softmin of C − f. Each yields f, g and the marginal error
 * ‖Pᵀ1 − b‖₁ between its two halves, where P1 = a. The column sums are b exp((g − g')/ε) for the next g'.
 */
export function* sinkhorn(C, a, b, eps, g = new Float64Array(b.length)) {
  const Ct = transpose(C);
  while (true) {
    const f = softmin(C, g, b, eps);
    const next = softmin(Ct, f, a, eps);
    const error = g.reduce(
      (total, value, j) => total + b[j] * Math.abs(Math.expm1((value - next[j]) / eps)),
      0,
    );
    yield { f, g, error };
    g = next;
  }
}

/** The same rounds as u ← a/(Kv), v ← b/(Kᵀu) with K = exp(−C/ε), as they stand. */
export function* scaling(C, a, b, eps) {
  const K = C.map((row) => row.map((c) => Math.exp(-c / eps)));
  const Kt = transpose(K);
  let v = Float64Array.from(b);
  while (true) {
    const u = a.map((mass, i) => mass / dot(K[i], v));
    const columns = Kt.map((row) => dot(row, u));
    yield { u, v, error: v.reduce((total, value, j) => total + Math.abs(value * columns[j] - b[j]), 0) };
    v = b.map((mass, j) => mass / columns[j]);
  }
}

/** P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε). */
export const plan = (C, a, b, f, g, eps) =>
  C.map((row, i) => row.map((c, j) => a[i] * b[j] * Math.exp((f[i] + g[j] - c) / eps)));

/** The potentials at a marginal error of `tol`, balanced, and the value ⟨a, f⟩ + ⟨b, g⟩. */
export function solveSinkhorn(C, a, b, eps, { tol = 1e-9, rounds = 10000, g0 } = {}) {
  for (const { f, g, error } of sinkhorn(C, a, b, eps, g0)) {
    if (error > tol && --rounds > 0) continue;
    const [u, v] = [f.slice(), g.slice()];
    balance(u, v, a, b);
    return { f: u, g: v, value: dot(a, u) + dot(b, v), error };
  }
}

/** The potential of a measure with itself: the mean of it and its soft minimum settles in a few rounds. */
export function solveSelf(C, eps, { tol = 1e-9, rounds = 500, f0 } = {}) {
  const a = uniform(C.length);
  let f = f0 ?? new Float64Array(a.length),
    change = Infinity;
  while (change > tol && rounds-- > 0) {
    const next = softmin(C, f, a, eps);
    change = f.reduce((largest, value, i) => Math.max(largest, Math.abs(value - next[i])), 0);
    f = f.map((value, i) => (value + next[i]) / 2);
  }
  return { f, value: 2 * dot(a, f) };
}
