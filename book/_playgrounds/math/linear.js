// Costs, sums and a linear solver: what the other modules share. A matrix is an array of rows.

/** C_ij = c(x_i, y_j), for points in the plane. */
export const costs = {
  sqeuclidean: (x, y) => x.map(([p, q]) => Float64Array.from(y, ([r, s]) => (p - r) ** 2 + (q - s) ** 2)),
  euclidean: (x, y) => x.map(([p, q]) => Float64Array.from(y, ([r, s]) => Math.hypot(p - r, q - s))),
};

export const transpose = (C) => Array.from(C[0], (_, j) => Float64Array.from(C, (row) => row[j]));
export const sum = (values) => values.reduce((total, value) => total + value, 0);
export const dot = (a, f) => a.reduce((total, value, i) => total + value * f[i], 0);
export const uniform = (n) => new Float64Array(n).fill(1 / n);

/** Shift the potentials, f up and g down, until ⟨a, f⟩ = ⟨b, g⟩; changes them in place. */
export function balance(f, g, a, b) {
  const shift = (dot(b, g) - dot(a, f)) / 2;
  f.forEach((_, i) => (f[i] += shift));
  g.forEach((_, j) => (g[j] -= shift));
}

/** The solution of A q = r by Gaussian elimination with pivots. */
export function solve(A, r) {
  const rows = A.map((row, i) => [...row, r[i]]);
  const n = rows.length;
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let i = k + 1; i < n; i++) if (Math.abs(rows[i][k]) > Math.abs(rows[pivot][k])) pivot = i;
    [rows[k], rows[pivot]] = [rows[pivot], rows[k]];
    for (let i = k + 1; i < n; i++) {
      const factor = rows[i][k] / rows[k][k];
      if (factor) for (let j = k; j <= n; j++) rows[i][j] -= factor * rows[k][j];
    }
  }
  const q = new Array(n).fill(0);
  for (let k = n - 1; k >= 0; k--) {
    q[k] = rows[k][n];
    for (let j = k + 1; j < n; j++) q[k] -= rows[k][j] * q[j];
    q[k] /= rows[k][k];
  }
  return q;
}

/** Numbers in [0, 1) from a seed, the same in every browser (mulberry32), and normal ones. */
export function generator(seed) {
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}
