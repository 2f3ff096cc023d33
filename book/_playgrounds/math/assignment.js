// The best matching by shortest augmenting paths, with the prices that prove it.

import { balance, sum, uniform } from "./linear.js";

/**
 * Minimise (1/n) Σ C[i][σ(i)] over permutations σ, for costs C ≥ 0.
 *
 * Sources enter one by one. Each looks for the shortest path to a free target, where a step from source i to
 * target j has the length C_ij − f_i − g_j ≥ 0 and a step back along the matching has length 0 (Dijkstra).
 * The prices then move just so far that the whole path has length 0: f_i + g_j ≤ C_ij everywhere, and
 * f_i + g_σ(i) = C_iσ(i). So no other matching is cheaper.
 */
export function assignment(C) {
  const n = C.length;
  const f = new Float64Array(n),
    g = new Float64Array(n);
  const sigma = new Int32Array(n).fill(-1),
    owner = new Int32Array(n).fill(-1);
  for (let start = 0; start < n; start++) {
    const length = new Float64Array(n).fill(Infinity),
      from = new Int32Array(n),
      done = new Uint8Array(n);
    let i = start,
      j = -1,
      shortest = 0;
    while (i >= 0) {
      let next = -1;
      for (let k = 0; k < n; k++) {
        if (done[k]) continue;
        const through = shortest + C[i][k] - f[i] - g[k];
        if (through < length[k]) [length[k], from[k]] = [through, i];
        if (next < 0 || length[k] < length[next]) next = k;
      }
      j = next;
      shortest = length[j];
      done[j] = 1;
      i = owner[j]; // −1 when the target is free
    }
    f[start] += shortest;
    for (let k = 0; k < n; k++) {
      if (!done[k]) continue;
      g[k] -= shortest - length[k];
      if (k !== j) f[owner[k]] += shortest - length[k];
    }
    for (let i = -1; i !== start;) {
      // back along the path: every source on it takes the next target
      i = from[j];
      owner[j] = i;
      [sigma[i], j] = [j, sigma[i]];
    }
  }
  balance(f, g, uniform(n), uniform(n));
  return { sigma, f, g, cost: sum(Array.from(sigma, (j, i) => C[i][j])) / n };
}

/** The slacks C_ij − f_i − g_j: nowhere negative if the prices are feasible, zero on an optimal matching. */
export const slacks = (C, f, g) => C.map((row, i) => row.map((c, j) => c - f[i] - g[j]));
