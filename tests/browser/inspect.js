// Looks at a page the way a reader does. Every function returns a list of sentences, one a defect.
window.inspect = (() => {
  const article = () => document.querySelector("article") ?? document.body;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const shorten = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);

  // A name by which a person finds the element: tag, id or classes, the nearest id above, its text.
  function name(element) {
    const own = element.id ? `#${element.id}` : [...element.classList].slice(0, 3).map((c) => `.${c}`).join("");
    const above = element.id ? null : element.parentElement?.closest("[id]");
    const text = shorten(element.getAttribute("alt") || element.textContent || element.getAttribute("src") || "");
    return `<${element.tagName.toLowerCase()}${own}>${above ? ` in #${above.id}` : ""}${text ? ` “${text}”` : ""}`;
  }

  const visible = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true }) &&
    element.getClientRects().length > 0;

  function* textNodes(root) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (walker.currentNode.data.trim()) yield walker.currentNode;
  }

  // Opens everything that folds, so that what is inside is inspected too.
  function unfold() {
    for (const details of all("details")) details.open = true;
    for (const box of all(".toggle-hidden")) box.classList.remove("toggle-hidden");
  }

  // What would move although the reader asks for less motion; formulas are many, and still.
  function motion() {
    const seconds = (times) => Math.max(...times.split(",").map(parseFloat));
    const moves = (element) => [null, "::before", "::after"].some((part) => {
      const style = getComputedStyle(element, part);
      const fades = style.transitionProperty !== "none" && seconds(style.transitionDuration) > 0;
      return fades || style.animationName !== "none" || style.scrollBehavior === "smooth";
    });
    return all("html, body, body :not(mjx-container, mjx-container *)").filter(moves)
      .map((element) => `moves, though the reader asks for less motion: ${name(element)}`);
  }

  function formulas() {
    const found = [];
    for (const math of all(".math.notranslate", article())) {
      if (!math.querySelector("mjx-container")) found.push(`formula not typeset: ${name(math)}`);
    }
    for (const error of all("mjx-merror, [data-mjx-error]")) {
      const why = error.getAttribute("data-mjx-error") ?? error.querySelector("[data-mjx-error]")?.dataset.mjxError;
      found.push(`formula failed (${why ?? "unknown reason"}): ${name(error.closest(".math") ?? error)}`);
    }
    for (const text of textNodes(article())) {
      if (text.parentElement.closest("pre, code, script, style, mjx-container, .math")) continue;
      if (/\\\(|\\\[|\\begin\{|\$\$|\$[^$\s][^$]*\$/.test(text.data)) {
        found.push(`formula left as text: ${name(text.parentElement)}`);
      }
    }
    return found;
  }

  async function images() {
    for (const image of all("img")) image.loading = "eager"; // those below wait for the reader to come near
    await Promise.allSettled(all("img").map((image) => image.decode()));
    return all("img").filter((image) => !(image.complete && image.naturalWidth > 0))
      .map((image) => `image does not load: ${image.getAttribute("src")} ${name(image)}`);
  }

  function alternatives() {
    const found = [];
    for (const image of all("img", article())) {
      const alt = (image.getAttribute("alt") ?? "").trim();
      const where = `${image.getAttribute("src")} ${name(image)}`;
      if (!alt) found.push(`image without alt text: ${where}`);
      else if (/\.(svg|png|jpe?g|gif|webp)$/i.test(alt)) found.push(`alt text is a file name: ${where}`);
      else if (/^<?Figure size/.test(alt)) found.push(`alt text says nothing: ${where}`);
    }
    return found;
  }

  // Does the element lie in something that scrolls sideways by itself, or is it hidden on purpose?
  function scrollsInside(element) {
    for (let box = element; box && box !== document.body; box = box.parentElement) {
      const style = getComputedStyle(box);
      if (box !== element && /auto|scroll/.test(style.overflowX)) return true;
      if (style.position === "fixed" || box.matches("mjx-assistive-mml, .visually-hidden, .sr-only")) return true;
    }
    return false;
  }

  // Where the element and what flows out of it end; what it scrolls inside itself does not count.
  function rightEdge(element) {
    const box = element.getBoundingClientRect();
    const drawn = element.ownerSVGElement; // of a part of a drawing, scrollWidth says nothing
    const flows = !drawn && getComputedStyle(element).overflowX === "visible";
    return box.left + Math.max(box.width, flows ? element.scrollWidth : 0);
  }

  function tooWide() {
    const limit = document.documentElement.clientWidth;
    const widest = document.scrollingElement.scrollWidth;
    const over = all("*", article()).filter((element) => {
      return visible(element) && rightEdge(element) > limit + 1 && !scrollsInside(element);
    });
    const innermost = over.filter((element) => !over.some((other) => other.parentElement === element));
    const culprits = new Set(innermost.map((element) => element.closest(".math, mjx-container") ?? element));
    const found = [...culprits].slice(0, 20)
      .map((element) => `reaches ${Math.round(rightEdge(element))} px of ${limit}: ${name(element)}`);
    return widest > limit && !found.length ? [`the page is ${widest} px wide on a screen of ${limit}`] : found;
  }

  // --- Contrast, by the definitions of WCAG 2.2 ---------------------------------------------------

  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parsed = new Map();
  function rgba(color) {
    if (!parsed.has(color)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      parsed.set(color, [r, g, b, a / 255]);
    }
    return parsed.get(color);
  }
  const over = (top, alpha, bottom) => [0, 1, 2].map((k) => alpha * top[k] + (1 - alpha) * bottom[k]);

  function background(element) {
    const layers = [];
    for (let box = element; box; box = box.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(box).backgroundColor);
      if (a > 0) layers.push([[r, g, b], a]);
      if (a === 1) break;
    }
    const dark = /dark/.test(getComputedStyle(document.documentElement).colorScheme);
    return layers.reduceRight((below, [color, a]) => over(color, a, below), dark ? [18, 18, 18] : [255, 255, 255]);
  }

  function luminance(color) {
    const [r, g, b] = color.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function ratio(element) {
    const below = background(element);
    const [r, g, b, a] = rgba(getComputedStyle(element).color);
    let alpha = a;
    for (let box = element; box; box = box.parentElement) alpha *= getComputedStyle(box).opacity;
    const [low, high] = [luminance(over([r, g, b], alpha, below)), luminance(below)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  }

  function contrast(atLeast) {
    const worst = new Map(); // one report for each kind of element and pair of colours
    for (const text of textNodes(document.body)) {
      const element = text.parentElement;
      if (element.closest("script, style, mjx-assistive-mml, .visually-hidden") || !visible(element)) continue;
      const value = ratio(element);
      if (value >= atLeast) continue;
      const kind = `${element.tagName}.${element.className}/${getComputedStyle(element).color}/${background(element)}`;
      if (!worst.has(kind)) worst.set(kind, [value, element]);
    }
    return [...worst.values()].sort((x, y) => x[0] - y[0])
      .map(([value, element]) => `contrast ${value.toFixed(2)} < ${atLeast}: ${name(element)}`);
  }

  // --- Structure ------------------------------------------------------------------------------------

  function structure() {
    const found = [];
    if (!document.documentElement.lang) found.push("<html> has no lang");
    if (!document.title.trim()) found.push("the page has no title");
    if (all("main, [role=main]").length !== 1) found.push("the page has not exactly one <main>");
    const skip = all("a[href^='#']").find((link) => /skip/i.test(link.textContent));
    if (!skip) found.push("no link that skips to the content");
    else if (!document.getElementById(skip.hash.slice(1))) found.push(`the skip link leads nowhere: ${name(skip)}`);
    const headings = all("h1, h2, h3, h4, h5, h6", article()).filter(visible);
    const first = headings.filter((heading) => heading.tagName === "H1");
    if (first.length !== 1) found.push(`${first.length} visible <h1> in the article instead of one`);
    headings.slice(1).forEach((heading, k) => {
      if (heading.tagName[1] - headings[k].tagName[1] > 1) {
        found.push(`heading skips a level: ${name(heading)} follows ${name(headings[k])}`);
      }
    });
    const seen = new Set();
    for (const element of all("[id]", article())) {
      if (element.closest("svg, mjx-container")) continue;
      if (seen.has(element.id)) found.push(`id used twice: ${name(element)}`);
      seen.add(element.id);
    }
    for (const control of all("button, a[href]").filter(visible)) {
      const label = control.getAttribute("aria-label") || control.title || control.textContent.trim()
        || control.querySelector("img[alt]")?.alt;
      if (!label) found.push(`control without a name: ${name(control)}`);
    }
    return found;
  }

  return { unfold, motion, formulas, images, alternatives, tooWide, contrast, structure };
})();
