// Native inputs with labels, the line that says the numbers, and the clock of what moves.

import { select } from "../d3/d3.js";

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A box for panels or inputs. */
export const box = (parent, className) => select(parent).append("div").attr("class", className).node();

export function button(parent, text, onClick) {
  return select(parent).append("button").attr("type", "button").text(text).on("click", onClick).node();
}

/** A slider; `show(value)` is the text beside its name, and `map` turns its position into a value. */
export function slider(parent, { label, min, max, step, value, map = (v) => v, show = String }, onInput) {
  const field = select(parent).append("label").attr("class", "field");
  const text = field.append("span");
  const input = field
    .append("input")
    .attr("type", "range")
    .attr("min", min)
    .attr("max", max)
    .attr("step", step)
    .property("value", value);
  const tell = () => {
    const shown = show(map(input.node().valueAsNumber));
    text.text(`${label} ${shown}`);
    input.attr("aria-valuetext", shown);
  };
  input.on("input", () => {
    tell();
    onInput(map(input.node().valueAsNumber));
  });
  tell();
  return { set: (position) => (input.property("value", position), tell()) };
}

/** A menu of named options: `options` maps what is chosen to what is read. */
export function choice(parent, { label, options, value }, onChange) {
  const field = select(parent).append("label").attr("class", "field");
  field.append("span").text(label);
  const menu = field.append("select").on("change", () => onChange(menu.node().value));
  menu
    .selectAll("option")
    .data(Object.entries(options))
    .join("option")
    .attr("value", ([key]) => key)
    .property("selected", ([key]) => key === value)
    .text(([, text]) => text);
}

/** A line of numbers that follows every change, and its echo for screen readers, which waits for a pause. */
export function readout(parent) {
  const line = select(parent).append("p").attr("class", "numbers");
  const echo = select(parent).append("p").attr("class", "visually-hidden").attr("aria-live", "polite");
  let pause;
  return (text) => {
    if (line.text() === text) return;
    line.text(text);
    clearTimeout(pause);
    pause = setTimeout(() => echo.text(text), 700);
  };
}

export const hint = (parent, text) => select(parent).append("p").attr("class", "hint").text(text);
export const MOVE = "Drag a point; or focus it, move it with the arrow keys, and go on with Page Down.";

/** Call `work` once in the next frame, however often it was asked for before. */
export function inNextFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

/**
 * A button that runs `step()` in every frame until it returns false or the reader stops it, followed by
 * `draw()`. A reader who asked for less motion gets `jump` steps at once instead.
 */
export function clock(parent, { step, draw, name = "Run", jump = 100 }) {
  let running = false;
  const control = button(parent, still() ? `${name}: ${jump} steps at once` : name, () => {
    if (still()) {
      for (let k = 0; k < jump && step() !== false; k++);
      draw();
    } else if (running) stop();
    else {
      running = true;
      control.textContent = "Pause";
      requestAnimationFrame(tick);
    }
  });
  function stop() {
    running = false;
    if (!still()) control.textContent = name;
  }
  function tick() {
    if (!running) return;
    if (!control.isConnected || step() === false) stop();
    draw();
    if (running) requestAnimationFrame(tick);
  }
  return { stop };
}

/** A number in four digits, with an exponent where it is small. */
export function digits(value, n = 4) {
  if (!Number.isFinite(value)) return "not a number";
  if (value === 0) return "0";
  const text =
    Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4 ? value.toExponential(1) : value.toPrecision(n);
  return text.replace("-", "−");
}
