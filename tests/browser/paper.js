// Looks at a page as it is printed: sentences about what a reader on paper would miss, or has no use for.
(controls) => {
  const article = document.querySelector("article");
  const shown = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && element.getClientRects().length > 0;
  const name = (element) => {
    const text = (element.textContent.trim() || element.getAttribute("alt") || "").replace(/\s+/g, " ").slice(0, 60);
    return `<${element.tagName.toLowerCase()} class="${element.className}"> in #${element.closest("[id]")?.id} “${text}”`;
  };
  const found = new Set();

  for (const element of document.querySelectorAll(controls)) {
    if (shown(element)) found.add(`a control is printed, hide it in print.css: ${name(element)}`);
  }

  const said = "h1, .admonition > *, details > *, p, pre, li, td, img, figcaption";
  const left = "button, summary, .visually-hidden, [hidden], .playground, .otbook-frames input:not(:checked) + label + img";
  for (const element of article.querySelectorAll(said)) {
    const empty = !element.textContent.trim() && !element.matches("img");
    if (!empty && !element.closest(left) && !shown(element)) found.add(`not printed: ${name(element)}`);
  }

  const limit = document.documentElement.clientWidth;
  for (const element of article.querySelectorAll("*")) {
    if (element.closest("svg, mjx-container > *, .visually-hidden") || !shown(element)) continue;
    const inside = element.scrollWidth - element.clientWidth;
    if (getComputedStyle(element).overflowX !== "visible" && element.clientWidth && inside > 1) {
      found.add(`cut by ${inside} px on paper; let it wrap or shrink: ${name(element)}`);
    }
    const beyond = Math.round(element.getBoundingClientRect().right - limit);
    if (beyond > 1) found.add(`${beyond} px beyond the paper; let it wrap or shrink: ${name(element)}`);
  }

  for (const link of article.querySelectorAll("a[href]")) {
    if (/http|\.html/.test(getComputedStyle(link, "::after").content)) {
      found.add(`a link's address is printed: ${name(link)}`);
    }
  }
  return [...found];
}
