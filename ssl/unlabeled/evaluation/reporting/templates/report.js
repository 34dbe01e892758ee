"use strict";
// The map answers the pointer, its legend picks out a class; tables that scroll say so. Names are set as text.

for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "scroll sideways to see all of it →";
  box.before(hint);
  const tell = () => (hint.hidden = box.scrollWidth <= box.clientWidth + 1);
  new ResizeObserver(tell).observe(box);
  tell();
}

const map = document.querySelector(".dots");
if (map) {
  const about = JSON.parse(document.getElementById("points").textContent);
  const sheet = document.querySelector(".sheet"), tip = map.querySelector(".tip"), legend = document.querySelector(".legend");
  const [canvas, words] = tip.children, drawing = map.querySelector("svg"), dots = [...map.querySelectorAll("circle")];
  const places = dots.map((dot) => [dot.cx.baseVal.value, dot.cy.baseVal.value]);
  let shown = null;
  canvas.hidden = !sheet;

  const line = (text, kind) => Object.assign(document.createElement("span"), { textContent: text, className: kind });

  function show(number) {
    dots[shown]?.classList.remove("shown");
    shown = number;
    tip.hidden = number === null;
    if (number === null) return;
    dots[number].classList.add("shown");
    map.querySelector("svg").append(dots[number]);
    if (sheet) {
      const pen = canvas.getContext("2d"), side = about.side;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(sheet, (number % about.across) * side, Math.floor(number / about.across) * side, side, side, 0, 0, 96, 96);
    }
    const label = about.labels[number], said = about.predicted?.[number], right = said === undefined || said === label;
    const verdict = said === undefined ? "" : right ? "✓ " : "✗ ";
    words.replaceChildren(
      line(verdict + about.classes[label] + (right ? "" : `, taken for ${about.classes[said]}`), said === undefined ? "" : right ? "right" : "wrong"),
      line(about.names[number], "quiet"),
    );
    const frame = map.getBoundingClientRect(), dot = dots[number].getBoundingClientRect();
    const x = dot.left - frame.left, y = dot.bottom - frame.top + 6;
    tip.style.left = `${Math.max(0, Math.min(x, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${y + tip.offsetHeight > frame.height ? Math.max(0, y - tip.offsetHeight - 24) : y}px`;
  }

  function nearest(event) {
    const frame = drawing.getBoundingClientRect(), scale = drawing.viewBox.baseVal.width / frame.width;
    const x = (event.clientX - frame.left) * scale, y = (event.clientY - frame.top) * scale;
    let best = null, least = (20 * scale) ** 2;
    places.forEach(([a, b], number) => {
      const far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least && !dots[number].classList.contains("faint")) [best, least] = [number, far];
    });
    return best;
  }

  map.addEventListener("pointermove", (event) => show(nearest(event)));
  map.addEventListener("pointerdown", (event) => show(nearest(event)));
  map.addEventListener("pointerleave", () => show(null));
  map.addEventListener("blur", () => show(null));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!step) return;
    event.preventDefault();
    show(((shown ?? (step > 0 ? -1 : 0)) + step + dots.length) % dots.length);
  });

  legend?.addEventListener("click", (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    const on = pressed.getAttribute("aria-pressed") !== "true";
    for (const each of legend.children) each.setAttribute("aria-pressed", String(on && each === pressed));
    for (const dot of dots) dot.classList.toggle("faint", on && dot.dataset.class !== pressed.dataset.class);
  });
}
