// Puts the page together, and answers pointer and keys.

const tip2d = element("canvas", { width: 134, height: 134 });
const tipText = element("div");
tip.append(tip2d, tipText);

function toolbar() {
  const kinds = ["cluster", ...(hasClasses ? ["class"] : []), ...(about.splits.length > 1 ? ["split"] : []), ...(K ? ["unusual"] : [])];
  const chooser = element("select", { ariaLabel: "colour by", onchange: () => { state.colour = chooser.value; writeLegend(); draw(); } },
    ...kinds.map((kind) => element("option", { value: kind }, kind)));
  const tools = [["pan", "Move"], ["box", "Box"], ["lasso", "Loop"]].map(([name, title]) => {
    const made = button(title, () => setTool(name));
    made.dataset.tool = name;
    return made;
  });
  const search = element("input", { type: "search", placeholder: "name", ariaLabel: "find images by their name", onchange: () => find(search.value), onsearch: () => find(search.value) });
  return element("div", { className: "tools" }, element("span", { className: "group" }, ...tools),
    element("span", { className: "group" }, button("−", () => zoomAt(width / 2, height / 2, 1 / 1.5), { title: "smaller" }), button("+", () => zoomAt(width / 2, height / 2, 1.5), { title: "larger" }), button("All", wholeMap, { title: "the whole map" })),
    element("label", {}, "colour", chooser), element("label", {}, "find", search));
}

function setTool(name) {
  state.tool = name;
  box.classList.toggle("draws", name !== "pan");
  for (const each of document.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === name));
}

function find(part) {
  const sought = part.trim().toLowerCase();
  if (!sought) return;
  const rows = [];
  for (let row = 0; row < N; row++) if (names[row].toLowerCase().includes(sought)) rows.push(row);
  open = "selection";
  select(rows, true);
}

// Pointers: one moves, draws or clicks; two enlarge.

const pointers = new Map();
let moved = 0;

const at = (event) => { const frame = canvas.getBoundingClientRect(); return [event.clientX - frame.left, event.clientY - frame.top]; };

canvas.onpointerdown = (event) => {
  pointers.set(event.pointerId, at(event));
  canvas.setPointerCapture(event.pointerId);
  moved = 0;
  tip.hidden = true;
  state.drawn = state.tool === "pan" || pointers.size > 1 ? null : [at(event)];
};

canvas.onpointermove = (event) => {
  const [x, y] = at(event), before = pointers.get(event.pointerId);
  if (!before) return hover(x, y);
  moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
  if (pointers.size === 2) pinch(event.pointerId, [x, y]);
  else if (state.drawn) extend([x, y]);
  else move(x - before[0], y - before[1]);
  pointers.set(event.pointerId, [x, y]);
};

function move(x, y) {
  view.x -= x / scale();
  view.y -= y / scale();
  draw();
}

function pinch(id, now) {
  const other = [...pointers].find(([each]) => each !== id)[1], before = pointers.get(id);
  const far = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]) || 1;
  zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, far(now) / far(before));
}

function extend([x, y]) {
  const [x0, y0] = state.drawn[0];
  if (state.tool === "box") state.drawn = [[x0, y0], [x, y0], [x, y], [x0, y]];
  else state.drawn.push([x, y]);
  draw();
}

canvas.onpointerup = canvas.onpointercancel = (event) => {
  if (!pointers.delete(event.pointerId)) return;
  const outline = state.drawn;
  state.drawn = null;
  if (event.type === "pointerup" && moved < 5) click(...at(event), event.ctrlKey || event.metaKey);
  else if (outline && outline.length > 2) {
    open = "selection";
    select(inOutline(outline), !event.shiftKey);
  }
  draw();
};

function click(x, y, adds) {
  const row = imageAt(x, y);
  if (row === null) return;
  if (adds) toggle(row);
  else choose(row);
}

canvas.onwheel = (event) => {
  event.preventDefault();
  zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
};
canvas.onpointerleave = () => (tip.hidden = true);
canvas.onkeydown = (event) => {
  const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
  if (steps) move(...steps);
  else if (event.key === "+" || event.key === "=") zoomAt(width / 2, height / 2, 1.3);
  else if (event.key === "-") zoomAt(width / 2, height / 2, 1 / 1.3);
  else if (event.key === "Escape") { state.drawn = null; state.chosen = null; draw(); writePanel(); }
  else return;
  event.preventDefault();
};

function hover(x, y) {
  const row = imageAt(x, y);
  tip.hidden = row === null;
  if (row === null) return;
  const pen = tip2d.getContext("2d");
  pen.clearRect(0, 0, 134, 134);
  const drawn = () => drawThumbnail(pen, row, 0, 0, 134);
  if (!drawn()) waiting.add(drawn);
  tipText.replaceChildren(element("span", {}, names[row]), element("span", { className: "quiet" }, `cluster ${cluster[row] + 1}${hasClasses ? ` · ${className(row)}` : ""}`));
  tip.dataset.row = row;
  tip.style.left = `${x + 168 > width ? x - 162 : x + 14}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 14, height - tip.offsetHeight - 4))}px`;
}

document.getElementById("page").replaceChildren(
  element("div", { className: "left" }, toolbar(), box),
  element("div", { className: "right" }, tabs, panel),
);
setTool("pan");
writeLegend();
writePanel();
resize();
new ResizeObserver(resize).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { writeLegend(); paint(); });
addEventListener("DOMContentLoaded", () => {
  parsed = true;
  whenDrawn();
  decodeAll().then(() => { document.documentElement.dataset.ready = "true"; });
});
