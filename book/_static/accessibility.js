// For readers without a mouse, with a screen reader, and on paper.
(() => {
  // --- What scrolls takes the focus, so that the arrow keys move it; what fits is no stop of the Tab key ---

  const SCROLLING = {
    "article div.math": "Formula",
    "article mjx-container": "Formula",
    "article pre": "Code",
    "article .output": "Output",
    "article .text_html": "Output",
    "article .pst-scrollable-table-container": "Table",
    "article table": "Table",
  };

  function scrolls(element) {
    const { overflowX, overflowY } = getComputedStyle(element);
    const may = (overflow) => /auto|scroll/.test(overflow);
    return (may(overflowX) && element.scrollWidth > element.clientWidth + 1)
      || (may(overflowY) && element.scrollHeight > element.clientHeight + 1);
  }

  function offerFocus() {
    const found = Object.entries(SCROLLING).flatMap(([selector, kind]) => {
      return [...document.querySelectorAll(selector)].map((element) => [element, kind, scrolls(element)]);
    });
    for (const [element, kind, wanted] of found) { // written after all is read: the page is laid out once
      if (wanted === (element.tabIndex === 0)) continue;
      if (!wanted) {
        const added = element.matches("table") ? ["tabindex"] : ["tabindex", "role", "aria-label"];
        for (const name of added) element.removeAttribute(name);
        continue;
      }
      element.tabIndex = 0;
      if (element.matches("table")) continue; // a role would hide that it is a table
      element.setAttribute("role", "group");
      element.setAttribute("aria-label", `${kind}, scrolls`);
    }
  }

  // --- A button that unfolds says what ---------------------------------------------------------------------

  function nameButtons() {
    for (const button of document.querySelectorAll("button.toggle-button")) {
      const title = button.parentElement.textContent.trim().replace(/\s+/g, " ");
      button.setAttribute("aria-label", `${title || "Hidden part"}: show or hide`);
    }
  }

  // --- Paper does not scroll: print.css shrinks a formula by what it knows of its width, in em ---------------

  function measureFormulas() {
    const wide = [...document.querySelectorAll("article mjx-container")].map((box) => {
      const size = parseFloat(getComputedStyle(box).fontSize);
      const glyphs = box.getAttribute("width") === "full" ? null : box.querySelector("mjx-math");
      return [box, Math.max((glyphs?.scrollWidth ?? 0) / size, parseFloat(box.style.minWidth) || 0)];
    });
    for (const [box, width] of wide) if (width > 25) box.style.setProperty("--width", width.toFixed(2));
  }

  // --- Paper is white ---------------------------------------------------------------------------------------

  function prepareForPaper() {
    const root = document.documentElement;
    root.dataset.screen ??= root.dataset.theme ?? "";
    root.dataset.theme = "light";
    for (const image of document.images) image.loading = "eager";
    for (const fold of document.querySelectorAll("details:not([open])")) {
      fold.dataset.folded = "";
      fold.open = true;
    }
  }

  function returnToScreen() {
    const root = document.documentElement;
    if (root.dataset.screen === undefined) return;
    root.dataset.theme = root.dataset.screen;
    delete root.dataset.screen;
    for (const fold of document.querySelectorAll("details[data-folded]")) {
      delete fold.dataset.folded;
      fold.open = false;
    }
  }

  const paper = matchMedia("print");
  paper.addEventListener("change", () => (paper.matches ? prepareForPaper() : returnToScreen()));
  addEventListener("beforeprint", prepareForPaper);
  addEventListener("afterprint", returnToScreen);

  addEventListener("load", async () => {
    nameButtons();
    await window.MathJax?.startup?.promise;
    measureFormulas();
    offerFocus();
    new ResizeObserver(offerFocus).observe(document.querySelector("article") ?? document.body);
    document.addEventListener("toggle", offerFocus, true);
  });
})();
