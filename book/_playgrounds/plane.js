// A coordinate plane in SVG: curves, segments, and dots that mouse, finger and keyboard can move.

import { axisBottom, axisLeft, line, scaleLinear, scaleLog, select } from "../d3/d3.js";

let planes = 0;

export class Plane {
  /**
   * @param parent where the plane goes.
   * @param x, y the intervals shown; `log` makes the second axis logarithmic.
   * @param axes whether to draw them; `xLabel` and `yLabel` are written at their ends.
   * @param label what a screen reader calls the plane.
   */
  constructor(
    parent,
    {
      x = [0, 1],
      y = [0, 1],
      width = 400,
      height = 400,
      axes = false,
      log = false,
      xLabel = "",
      yLabel = "",
      label,
    },
  ) {
    const [left, top, right, bottom] = axes ? [44, 24, 10, 34] : [8, 8, 8, 8];
    this.X = scaleLinear(x, [left, width - right]);
    this.Y = (log ? scaleLog : scaleLinear)(y, [height - bottom, top]);
    this.svg = select(parent)
      .append("svg")
      .attr("viewBox", `0 0 ${width} ${height}`)
      .attr("role", "group")
      .attr("aria-label", label);
    const clipped = (more) => {
      const id = `plane-${++planes}`;
      this.svg
        .append("clipPath")
        .attr("id", id)
        .append("rect")
        .attr("x", left - more)
        .attr("y", top - more)
        .attr("width", width - left - right + 2 * more)
        .attr("height", height - top - bottom + 2 * more);
      return `url(#${id})`;
    };
    const [inside, around] = [clipped(2), clipped(8)]; // a dot on the edge is shown in full
    if (axes) {
      const below = this.svg
        .append("g")
        .attr("class", "axis")
        .attr("transform", `translate(0,${height - bottom})`);
      const beside = this.svg.append("g").attr("class", "axis").attr("transform", `translate(${left},0)`);
      this.axes = () => {
        below.call(axisBottom(this.X).ticks(5).tickSizeOuter(0));
        beside.call(
          axisLeft(this.Y)
            .ticks(5, ...(log ? [power] : []))
            .tickSizeOuter(0),
        );
      };
      this.axes();
      this.names = [
        this.svg
          .append("text")
          .attr("text-anchor", "end")
          .attr("x", width - right)
          .attr("y", height - 3),
        this.svg.append("text").attr("x", 4).attr("y", 11),
      ];
      this.rename(xLabel, yLabel);
    } else {
      this.svg
        .append("rect")
        .attr("class", "frame")
        .attr("x", left)
        .attr("y", top)
        .attr("width", width - left - right)
        .attr("height", height - top - bottom);
    }
    this.content = this.svg.append("g").attr("clip-path", inside);
    this.front = this.svg.append("g").attr("clip-path", around);
    this.layers = new Map();
    this.trace = line(
      ([p]) => this.X(p),
      ([, q]) => this.Y(q),
    );
  }

  /** Show other intervals. */
  show(x, y) {
    if (`${[x, y]}` === `${[this.X.domain(), this.Y.domain()]}`) return;
    this.X.domain(x);
    this.Y.domain(y);
    this.axes();
  }

  /** Write other names at the axes. */
  rename(...labels) {
    this.names.forEach((text, k) => text.text(labels[k]));
  }

  /** The layer of this name; the first call decides which layers lie below it. */
  layer(name, root = this.content) {
    if (!this.layers.has(name)) this.layers.set(name, root.append("g").attr("class", name));
    return this.layers.get(name);
  }

  /** Draw curves, each a list of points, in the style of the CSS class `name`. */
  curves(name, list, { closed = false, style } = {}) {
    const paths = this.layer(name).selectAll("path").data(list).join("path");
    paths.attr("d", (points) => (points.length ? this.trace(points) + (closed ? "Z" : "") : null));
    if (style) paths.attr("style", (_, k) => style(k));
  }

  /** Draw straight segments, as one path: many cost little. */
  segments(name, pairs) {
    const d = pairs
      .map(([p, q]) => `M${this.X(p[0])},${this.Y(p[1])}L${this.X(q[0])},${this.Y(q[1])}`)
      .join("");
    this.layer(name)
      .selectAll("path")
      .data([d])
      .join("path")
      .attr("d", (path) => path);
  }

  /** Draw points that cannot be moved. */
  marks(name, points, radius = 3) {
    return this.layer(name)
      .selectAll("circle")
      .data(points)
      .join("circle")
      .attr("cx", ([p]) => this.X(p))
      .attr("cy", ([, q]) => this.Y(q))
      .attr("r", radius);
  }

  /** Draw circles of given radii, in units of the x axis. */
  circles(name, points, radii, dashed = () => false) {
    const unit = Math.abs(this.X(1) - this.X(0));
    this.marks(name, points, (_, k) => Math.abs(radii[k]) * unit).classed("dashed", (_, k) => dashed(k));
  }

  /**
   * Draw dots. With `move(k, [p, q])` they can be dragged, and moved with the arrow keys; Page Up and Page Down
   * lead from dot to dot, of which one is a stop of the Tab key. `name` is the CSS class, `title(k)` the dot's
   * name for a screen reader, `select(k)` is told which dot has the focus.
   */
  dots(name, points, { move, title = (k) => `${name} ${k + 1}`, select: selected, radius = 6 } = {}) {
    const layer = this.layer(name, this.front);
    const label = (k, [p, q]) => `${title(k)} of ${points.length}, at ${p.toFixed(2)}, ${q.toFixed(2)}`;
    const dots = layer
      .selectAll("g")
      .data(points)
      .join((enter) => {
        const dot = enter.append("g").attr("class", "dot");
        dot.append("circle").attr("class", "hit").attr("r", 14);
        dot.append("circle").attr("class", "bead").attr("r", radius);
        if (move) this.#movable(dot, layer);
        return dot;
      });
    dots.attr("transform", ([p, q]) => `translate(${this.X(p).toFixed(2)},${this.Y(q).toFixed(2)})`);
    if (!move) return;
    layer.node().handlers = { move, selected, label };
    const nodes = dots.nodes();
    if (nodes.length && !nodes.some((node) => node.tabIndex === 0)) nodes[0].tabIndex = 0;
    nodes.forEach((node, k) => {
      if (!node.hasAttribute("aria-label") || node === document.activeElement) {
        node.setAttribute("aria-label", label(k, points[k]));
      }
    });
  }

  #movable(dot, layer) {
    const plane = this,
      handlers = () => layer.node().handlers;
    const index = (node) => [...layer.node().children].indexOf(node);
    const inside = ([p, q]) => [bounded(p, this.X.domain()), bounded(q, this.Y.domain())];
    const at = (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(
        this.svg.node().getScreenCTM().inverse(),
      );
      return inside([this.X.invert(place.x), this.Y.invert(place.y)]);
    };
    dot
      .attr("tabindex", -1)
      .attr("role", "button")
      .attr("aria-roledescription", "movable point")
      .on("touchstart", (event) => event.preventDefault(), { passive: false }) // the page stays where it is
      .on("pointerdown", function (event) {
        this.setPointerCapture(event.pointerId);
        this.focus({ preventScroll: true });
        event.preventDefault();
      })
      .on("pointermove", function (event) {
        if (this.hasPointerCapture(event.pointerId)) handlers().move(index(this), at(event));
      })
      .on("focus", function () {
        for (const other of layer.node().children) other.tabIndex = other === this ? 0 : -1;
        const k = index(this);
        this.setAttribute("aria-label", handlers().label(k, select(this).datum()));
        handlers().selected?.(k);
      })
      .on("keydown", function (event, [p, q]) {
        const share = event.shiftKey ? 0.1 : 0.02;
        const [dx, dy] = [plane.X, plane.Y].map((scale) => share * (scale.domain()[1] - scale.domain()[0]));
        const target = {
          ArrowLeft: [p - dx, q],
          ArrowRight: [p + dx, q],
          ArrowUp: [p, q + dy],
          ArrowDown: [p, q - dy],
        }[event.key];
        const turn = { PageDown: 1, PageUp: -1 }[event.key];
        if (!target && !turn) return;
        event.preventDefault();
        const all = layer.node().children,
          k = index(this);
        if (target) handlers().move(k, inside(target));
        else all[(k + turn + all.length) % all.length].focus();
      });
  }
}

/** 1e-4 as 10⁻⁴. */
const power = (value) =>
  `10${[...String(Math.round(Math.log10(value)))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;

const bounded = (value, [low, high]) => Math.min(Math.max(value, low), high);
