// Where the focus is: what a person who uses the keyboard sees of it.
() => {
  const element = document.activeElement;
  if (!element || element === document.body || element === document.documentElement) return null;
  const text = element.getAttribute("aria-label") || element.title || element.textContent.trim() || element.id;
  const drawn = (box) => {
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(box);
    return (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
  };
  // A radio button of a slider is drawn as its label, a fold of the list of chapters as its arrow.
  const arrow = element.matches("summary") && element.querySelector(".toctree-toggle");
  const box = element.matches(".otbook-frames input") ? element.nextElementSibling : arrow || element;
  const { left, right, top, bottom } = box.getBoundingClientRect();
  const onScreen = right > Math.max(left, 0) && left < innerWidth && bottom > Math.max(top, 0) && top < innerHeight;
  const described = box.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const again = window.lastFocused === element;
  window.lastFocused = element;
  return {
    again,
    name: `<${element.tagName.toLowerCase()} class="${element.className}"> “${text.replace(/\s+/g, " ").slice(0, 50)}”`,
    outlined: drawn(box),
    seen: described && onScreen,
    kinds: Object.entries({
      "skip link": ".skip-link a",
      "search": ".search-button, .search-button__button, input[type=search]",
      "theme switch": ".theme-switch-button",
      "sidebar button": ".primary-toggle, .sidebar-toggle",
      "launch menu": ".dropdown-launch-buttons > button",
      "fold": ".toggle-button",
      "code that scrolls": "article pre, article .output",
      "formula that scrolls": "article div.math, article mjx-container",
      "table of contents": ".bd-toc-nav a, .page-toc a",
      "chapter list": ".bd-sidebar-primary nav a",
    }).filter(([, selector]) => element.matches(selector)).map(([kind]) => kind),
  };
}
