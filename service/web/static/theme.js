// Light or dark, before the first paint (a classic script, so that it runs before the style sheet is applied).
"use strict";
(() => {
  let kept = null;
  try {
    kept = localStorage.getItem("evergreen-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
