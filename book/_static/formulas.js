// Lets an inline formula that is wider than its line scroll inside itself, as displayed ones do.
// Only such formulas get the class: it moves a formula off the line's baseline.
(() => {
  function fit() {
    const formulas = [...document.querySelectorAll("article p mjx-container:not([display]), article li mjx-container:not([display])")];
    for (const formula of formulas) formula.classList.remove("wide");
    const wide = formulas.filter((formula) => {
      return formula.getBoundingClientRect().width > formula.closest("p, li").clientWidth + 1;
    });
    for (const formula of wide) formula.classList.add("wide");
  }

  window.addEventListener("load", async () => {
    if (!window.MathJax?.startup) return;
    await MathJax.startup.promise;
    fit();
    window.addEventListener("resize", fit);
    document.addEventListener("toggle", fit, true); // a fold that opens
  });
})();
