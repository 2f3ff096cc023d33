// A matrix as a picture, its rows the sources and its columns the targets, with potentials along two sides.

import { select } from "../d3/d3.js";

const SIZE = 400,
  EDGE = 66; // of the whole, and of the strips for the potentials

export class Matrix {
  constructor(parent, { label }) {
    const box = select(parent).append("div").attr("class", "matrix");
    this.canvas = box.append("canvas").attr("aria-hidden", "true").node();
    this.svg = box
      .append("svg")
      .attr("viewBox", `0 0 ${SIZE} ${SIZE}`)
      .attr("role", "img")
      .attr("aria-label", label);
    this.svg
      .append("rect")
      .attr("class", "frame")
      .attr("x", EDGE)
      .attr("y", EDGE)
      .attr("width", SIZE - EDGE)
      .attr("height", SIZE - EDGE);
    for (const name of ["source bars", "target bars", "pairs"]) this.svg.append("path").attr("class", name);
    this.svg
      .append("text")
      .attr("class", "source")
      .attr("x", 2)
      .attr("y", EDGE - 6)
      .text("f");
    this.svg
      .append("text")
      .attr("class", "target")
      .attr("x", EDGE - 14)
      .attr("y", 14)
      .text("g");
  }

  /**
   * Draw the entries of P, dark where they are large; `pairs[i]` is the column marked in row i, `shade` the
   * darkness between 0 and 1 of an entry's share of the largest.
   */
  draw(P, { f, g, pairs = [], shade = (share) => share }) {
    const [n, m] = [P.length, P[0].length];
    const largest = Math.max(...P.map((row) => row.reduce((top, value) => Math.max(top, value), 0)), 1e-300);
    Object.assign(this.canvas, { width: m, height: n });
    const context = this.canvas.getContext("2d"),
      pixels = context.createImageData(m, n);
    P.forEach((row, i) =>
      row.forEach((value, j) => {
        pixels.data[4 * (i * m + j) + 3] = 255 * shade(Math.max(value, 0) / largest); // black, more or less opaque
      }),
    );
    context.putImageData(pixels, 0, 0);

    const height = (SIZE - EDGE) / n,
      width = (SIZE - EDGE) / m;
    const strip = (values) => {
      const all = [...values],
        low = Math.min(0, ...all),
        high = Math.max(0, ...all, low + 1e-12);
      return (value) => 6 + ((EDGE - 26) * (value - low)) / (high - low); // distance from the matrix
    };
    const [across, up] = [strip(f), strip(g)];
    const rows = Array.from(
      f,
      (value, i) =>
        `M${EDGE - across(0)},${EDGE + i * height}H${EDGE - across(value)}v${height}H${EDGE - across(0)}Z`,
    );
    const columns = Array.from(
      g,
      (value, j) => `M${EDGE + j * width},${EDGE - up(0)}V${EDGE - up(value)}h${width}V${EDGE - up(0)}Z`,
    );
    const boxes = Array.from(
      pairs,
      (j, i) => `M${EDGE + j * width},${EDGE + i * height}h${width}v${height}h${-width}Z`,
    );
    this.svg
      .selectAll("path")
      .data([rows, columns, boxes])
      .attr("d", (parts) => parts.join(""));
  }
}
