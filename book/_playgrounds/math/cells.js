// Laguerre cells in the unit square by clipping, and the two ways to find their prices.

import { solve, sum } from "./linear.js";

const SQUARE = [
  [0, 0],
  [1, 0],
  [1, 1],
  [0, 1],
].map(([x, y]) => ({ x, y, wall: -1 }));

/** The part of a convex polygon where nx x + ny y ≤ c. The edge after a corner belongs to its `wall`. */
export function clip(polygon, nx, ny, c, wall) {
  const kept = [];
  polygon.forEach((p, s) => {
    const q = polygon[(s + 1) % polygon.length];
    const here = nx * p.x + ny * p.y - c,
      there = nx * q.x + ny * q.y - c;
    if (here <= 0) kept.push(p);
    if (here <= 0 !== there <= 0) {
      const r = here / (here - there);
      kept.push({ x: p.x + r * (q.x - p.x), y: p.y + r * (q.y - p.y), wall: here <= 0 ? wall : p.wall });
    }
  });
  return kept;
}

/** Cell j = {x in the square : |x − y_j|² + p_j ≤ |x − y_k|² + p_k for all k}. */
export function cells(points, prices) {
  return points.map(([u, v], j) => {
    let polygon = SQUARE;
    for (let k = 0; k < points.length && polygon.length; k++) {
      if (k === j) continue;
      const [r, s] = points[k];
      const c = (r * r + s * s - u * u - v * v + prices[k] - prices[j]) / 2;
      polygon = clip(polygon, r - u, s - v, c, k);
    }
    return polygon;
  });
}

/** Area, barycentre and ∫ |x − y|² of a polygon (Green's formula on each edge). */
export function measure(polygon, [u, v] = [0, 0]) {
  let area = 0,
    first = 0,
    second = 0,
    cost = 0;
  polygon.forEach((p, s) => {
    const q = polygon[(s + 1) % polygon.length];
    const [a, b, c, d] = [p.x - u, p.y - v, q.x - u, q.y - v];
    const cross = a * d - b * c;
    area += cross / 2;
    first += (cross * (a + c)) / 6;
    second += (cross * (b + d)) / 6;
    cost += (cross * (a * a + a * c + c * c + b * b + b * d + d * d)) / 12;
  });
  return { area, barycentre: area > 0 ? [u + first / area, v + second / area] : [u, v], cost };
}

export const areas = (polygons) => polygons.map((polygon) => measure(polygon).area);

/** Σ_j |area_j − 1/m|: how far the cells are from equal. */
export const unevenness = (masses) => sum(masses.map((mass) => Math.abs(mass - 1 / masses.length)));

/** The Laplacian of the walls: wall jk conducts its length over 2 |y_j − y_k|. It is minus the Hessian. */
export function laplacian(points, polygons) {
  const A = points.map(() => new Float64Array(points.length));
  polygons.forEach((polygon, j) =>
    polygon.forEach((p, s) => {
      if (p.wall < 0) return;
      const q = polygon[(s + 1) % polygon.length];
      const [[a, b], [c, d]] = [points[j], points[p.wall]];
      const flow = Math.hypot(q.x - p.x, q.y - p.y) / (2 * Math.hypot(a - c, b - d));
      A[j][j] += flow;
      A[j][p.wall] -= flow;
    }),
  );
  return A;
}

/**
 * One step of gradient ascent on the dual: a price rises by τ times the excess of its cell. No eigenvalue of
 * the Laplacian is larger than twice its largest diagonal entry, so this τ does not overshoot.
 */
export function gradientStep(points, prices, tau) {
  const polygons = cells(points, prices),
    masses = areas(polygons);
  tau ??= 0.5 / Math.max(...laplacian(points, polygons).map((row, j) => row[j]));
  return prices.map((price, j) => price + tau * (masses[j] - 1 / points.length));
}

/**
 * One damped step of Newton's method: raise the prices by q with A q = excess, for as much of q as leaves
 * every cell half of the least mass and lowers the error. An empty cell has no walls, so it is left to
 * `prices` to give all cells mass.
 */
export function newtonStep(points, prices) {
  const m = points.length,
    polygons = cells(points, prices),
    masses = areas(polygons);
  const least = Math.min(...masses, 1 / m) / 2,
    error = unevenness(masses);
  const excess = masses.map((mass) => mass - 1 / m);
  const A = laplacian(points, polygons)
    .slice(1)
    .map((row) => row.slice(1)); // price 0 stays: only differences count
  const q = [0, ...solve(A, excess.slice(1))];
  for (let step = 1; step > 1e-9; step /= 2) {
    const next = prices.map((price, j) => price + step * q[j]);
    const trial = areas(cells(points, next));
    if (Math.min(...trial) >= least && unevenness(trial) <= (1 - step / 2) * error) return centred(next);
  }
  return prices;
}

/** Prices with the mean 0. */
export function centred(prices) {
  const mean = sum(prices) / prices.length;
  return prices.map((price) => price - mean);
}
