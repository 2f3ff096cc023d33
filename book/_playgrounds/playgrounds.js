// Starts the playgrounds of a page, each when the reader comes near it. Until then, without JavaScript and in
// print, its picture stands there.

async function begin(figure) {
  const place = figure.querySelector("[data-playground]");
  const { start } = await import(`./${place.dataset.playground}.js`);
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", figure.querySelector("img").alt);
  figure.classList.add("live");
  place.playground = start(place);
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      begin(target);
    }
  },
  { rootMargin: "50%" },
);

for (const place of document.querySelectorAll("[data-playground]")) near.observe(place.closest("figure"));
