// Beside the map: one image with its neighbours, clusters, outliers, near duplicates, what to label, the selection.

const PAGE = 60; // thumbnails that a list shows before it is asked for more
const CENTRAL = 12; // of each cluster
const GROUPS = 60; // of duplicates
const panel = element("div", { className: "panel", id: "panel", tabIndex: -1 });
const tabs = element("div", { className: "tabs", role: "tablist" });
const waiting = new Set(); // thumbnails whose sheet is not decoded
let open = "clusters";
let similarity = about.similarity;

const PANELS = {
  image: ["Image", imagePanel],
  clusters: ["Clusters", clustersPanel],
  outliers: ["Outliers", outliersPanel],
  duplicates: ["Duplicates", duplicatesPanel],
  label: ["Label next", labelPanel],
  selection: ["Selection", selectionPanel],
};

function openPanel(name) {
  open = name;
  panel.scrollTop = 0;
  writePanel();
}

function writePanel() {
  waiting.clear();
  tabs.replaceChildren(...Object.entries(PANELS).map(([name, [title]]) => {
    const many = name === "selection" && state.picked.size ? ` (${count(state.picked.size)})` : "";
    const tab = button(title + many, () => openPanel(name));
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", String(name === open));
    tab.dataset.panel = name;
    return tab;
  }));
  panel.replaceChildren(...PANELS[open][1]());
}

function button(text, act, properties = {}) {
  return element("button", { type: "button", onclick: act, ...properties }, text);
}

/** A canvas with an image, drawn again when its sheet is there. */
function picture(row, pixels) {
  const made = element("canvas", { width: pixels, height: pixels });
  const drawn = () => drawThumbnail(made.getContext("2d"), row, 0, 0, pixels);
  if (!drawn()) waiting.add(drawn);
  return made;
}

whenDrawn = () => {
  for (const drawn of waiting) if (drawn()) waiting.delete(drawn);
  draw();
};

function tile(row, text = "") {
  const made = element("button", { type: "button", className: "tile", title: names[row], onclick: (event) => (event.ctrlKey || event.metaKey ? toggle(row) : choose(row)) },
    picture(row, Math.max(64, Math.min(128, SIDE * 2))), text ? element("span", {}, text) : null);
  made.classList.toggle("chosen", state.picked.has(row));
  made.dataset.row = row;
  return made;
}

/** Some tiles, and a button for more. */
function tiles(rows, text = () => "", first = PAGE) {
  const grid = element("div", { className: "tiles" });
  const add = (end) => grid.append(...Array.from(rows.slice(grid.childElementCount, end), (row, place) => tile(row, text(row, place))));
  add(first);
  const more = button("more", () => {
    add(grid.childElementCount + PAGE);
    more.hidden = grid.childElementCount >= rows.length;
  }, { hidden: rows.length <= first });
  return [grid, more];
}

const text = (words, kind = "quiet") => element("p", { className: kind }, words);
const line = (...children) => element("div", { className: "row" }, ...children);
const end = (made) => (made.classList.add("end"), made);
const selects = (words, rows) => end(button(words, () => select(rows)));

// Choosing one image, and selecting many.

function choose(row) {
  state.chosen = row;
  showOnMap(row);
  openPanel("image");
}

function toggle(row) {
  if (!state.picked.delete(row)) state.picked.add(row);
  draw();
  writePanel();
}

function select(rows, anew = false) {
  if (anew) state.picked.clear();
  for (const row of rows) state.picked.add(row);
  draw();
  writePanel();
}

function save() {
  const rows = [...state.picked].sort((a, b) => a - b);
  const list = new Blob(rows.map((row) => `${about.root}${names[row]}\n`), { type: "text/plain" });
  const link = element("a", { href: URL.createObjectURL(list), download: "selection.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function imagePanel() {
  const row = state.chosen;
  if (row === null) return [text("Click an image on the map, or anywhere on this page, to see the images most like it. Ctrl-click selects it.")];
  const facts = [["cluster", `${cluster[row] + 1} of ${clusters.length}, ${plural(clusters[cluster[row]].length, "image")}`]];
  if (hasClasses) facts.push(["class", className(row)]);
  if (about.splits.length > 1) facts.push(["split", about.splits[about.split[row]]]);
  if (K) facts.push(["unusual", `more than ${Math.floor(100 * shareBelow(unusual[row]))} % of the images`]);
  const list = element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  const others = Array.from(near.subarray(row * K, (row + 1) * K));
  return [
    element("div", { className: "one" }, picture(row, 148), element("div", {}, element("b", {}, names[row]), list)),
    line(button(state.picked.has(row) ? "take out of the selection" : "select it", () => toggle(row)), button("select its cluster", () => select(clusters[cluster[row]]))),
    element("section", {}, line(element("h2", {}, "Most similar images"), others.length ? selects("select them", others) : null),
      others.length ? null : text("There is no other image."), ...tiles(others, (other, place) => cosine(row, place).toFixed(3))),
  ];
}

function shareBelow(value) {
  let below = 0;
  for (let row = 0; row < N; row++) if (unusual[row] < value) below++;
  return below / N;
}

function clustersPanel() {
  const list = about.colours.cluster.map((each) => (each.startsWith("--") ? cssColour(each) : each));
  return [
    text(`${plural(clusters.length, "cluster")} ${about.ownClusters ? "of the method itself" : "by k-means"}, the largest first; of each the images ${about.ownClusters ? "of which it is most certain" : "nearest to its middle"}.`),
    ...clusters.map((rows, number) => element("section", {},
      line(swatch(list[number]), element("h2", {}, `Cluster ${number + 1}`), element("small", {}, plural(rows.length, "image") + commonClass(rows)), selects("select", rows)),
      ...tiles(rows, undefined, CENTRAL))),
  ];
}

function commonClass(rows) {
  if (!hasClasses) return "";
  const counts = new Map();
  for (const row of rows) counts.set(label[row], (counts.get(label[row]) ?? 0) + 1);
  const [most, times] = [...counts].sort((a, b) => b[1] - a[1])[0];
  return `, ${Math.round((100 * times) / rows.length)} % ${most < 0 ? "no label" : about.classes[most]}`;
}

function outliersPanel() {
  if (!K) return [text("One image has nothing to be compared with.")];
  return [
    line(text(`The images least like the ${Math.min(10, K)} most similar to them, the most unusual first. The number is 1 minus their mean cosine.`), selects("select those shown", outliers.slice(0, PAGE))),
    ...tiles(outliers, (row) => unusual[row].toFixed(3)),
  ];
}

// Near duplicates: chains of pairs above a similarity.

function duplicatesPanel() {
  const shown = element("output", {}, similarity.toFixed(4)), found = element("div");
  const slider = element("input", { type: "range", min: 0.9, max: 1, step: 0.0001, value: similarity, id: "similarity", ariaLabel: "least cosine of near duplicates" });
  slider.oninput = () => {
    similarity = Number(slider.value);
    shown.textContent = similarity.toFixed(4);
    found.replaceChildren(...duplicateGroups());
  };
  found.append(...duplicateGroups());
  return [text("Groups of images whose features are nearly equal. How near is near differs between networks: move the slider until the groups are what you call duplicates."),
    line(element("label", { htmlFor: "similarity" }, "least cosine"), slider, shown), found];
}

function groupsOf(least) {
  const first = Uint32Array.from({ length: N }, (_, row) => row);
  const root = (row) => { while (first[row] !== row) row = first[row] = first[first[row]]; return row; };
  const enough = least - 2e-5; // numbers of two bytes
  for (let row = 0; row < N; row++) {
    for (let place = 0; place < K && cosine(row, place) >= enough; place++) {
      const one = root(row), other = root(near[row * K + place]);
      if (one !== other) first[Math.max(one, other)] = Math.min(one, other);
    }
  }
  const groups = new Map();
  for (let row = 0; row < N; row++) {
    const key = root(row);
    if (groups.has(key)) groups.get(key).push(row); else groups.set(key, [row]);
  }
  return [...groups.values()].filter((group) => group.length > 1).sort((a, b) => b.length - a.length || a[0] - b[0]);
}

function duplicateGroups() {
  const groups = groupsOf(similarity), inside = groups.reduce((sum, group) => sum + group.length, 0);
  if (!groups.length) return [text("No two images are so similar.")];
  return [
    line(text(`${plural(groups.length, "group")} with ${plural(inside, "image")}`), selects("select all but one of each", groups.flatMap((group) => group.slice(1)))),
    ...groups.slice(0, GROUPS).map((group) => element("section", {}, line(element("small", {}, plural(group.length, "image")), selects("select", group)), ...tiles(group, undefined, CENTRAL))),
    groups.length > GROUPS ? text(`and ${plural(groups.length - GROUPS, "more group")}`) : null,
  ].filter(Boolean);
}

function labelPanel() {
  return [
    element("section", {}, line(element("h2", {}, "Typical images"), selects("select them", typical)),
      text("The middle of as many dense regions as there are images here: good first labels (TypiClust)."), ...tiles(typical, (_, place) => `${place + 1}`, 24)),
    element("section", {}, line(element("h2", {}, "Images that cover the rest"), selects("select them", covering)),
      text("Each is the farthest from all before it (greedy k-centre): odd images come early."), ...tiles(covering, (_, place) => `${place + 1}`, 24)),
  ];
}

function selectionPanel() {
  const rows = [...state.picked];
  const none = rows.length === 0;
  return [
    line(button("Save as a list", save, { className: "main", disabled: none, id: "save" }), button("clear", () => select([], true), { disabled: none }),
      button("invert", () => { const all = []; for (let row = 0; row < N; row++) if (!state.picked.has(row)) all.push(row); select(all, true); })),
    text(none ? "Nothing is selected. Draw a box or a loop on the map, Ctrl-click images, or take a cluster, the outliers or what to label."
      : `${plural(rows.length, "image")}. The list has a name in each line: a labels_file, and data=selection.txt where the images are files.`),
    ...tiles(rows),
  ];
}
