// What the theme adds to a page is given names of its own, and can be scrolled by the keyboard.
function complete() {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) each.tabIndex = 0;
  document.querySelectorAll("nav nav, .md-code__nav").forEach((each, place) => {
    const name = document.getElementById(each.getAttribute("aria-labelledby"))?.textContent.trim();
    if (name) each.removeAttribute("aria-labelledby");
    if (name || !each.ariaLabel) each.ariaLabel = `${name ?? "Code"}, ${place + 1}`;
  });
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
}

document.addEventListener("DOMContentLoaded", () => {
  complete();
  new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
});
