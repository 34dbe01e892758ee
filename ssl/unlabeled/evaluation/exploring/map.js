// The map: a dot for each image, its thumbnail where there is room; moved, enlarged, asked and selected from.

const CELLS = 128; // of the grid by which the image below the pointer is found
const DOTS_FROM = 420; // images in sight, from which on they are dots
const state = { colour: "cluster", tool: "pan", chosen: null, picked: new Set(), drawn: null };
const view = { x: 0.5, y: 0.5, zoom: 1 }; // the middle of the screen on the map, and 1: all of the map is in sight
const canvas = element("canvas", { tabIndex: 0, ariaLabel: "Map of the images: arrows move it, + and − enlarge it" });
const box = element("div", { className: "map" }, canvas);
const tip = element("div", { className: "tip", hidden: true });
const legend = element("div", { className: "legend" });
box.append(legend, tip);
let width = 0, height = 0, ratio = 1, asked = false;

/** An element; `children` are elements or texts. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const px = (row) => positions[2 * row] / 65535, py = (row) => 1 - positions[2 * row + 1] / 65535;
const border = N < DOTS_FROM ? 100 : 40; // pixels for what hangs over the edge
const scale = () => view.zoom * (Math.min(width, height) - border);
const toX = (x) => (x - view.x) * scale() + width / 2, toY = (y) => (y - view.y) * scale() + height / 2;
const fromX = (x) => (x - width / 2) / scale() + view.x, fromY = (y) => (y - height / 2) / scale() + view.y;

// Colours, as the page has them in the light and in the dark.

const valueOf = { cluster: (row) => cluster[row], class: (row) => label[row], split: (row) => about.split[row], unusual: shade };
let limits = null;

function shade(row) {
  limits ??= spread();
  const share = (unusual[row] - limits[0]) / (limits[1] - limits[0] || 1);
  return Math.max(0, Math.min(about.colours.unusual.length - 1, Math.floor(share * about.colours.unusual.length)));
}

function spread() {
  const sorted = unusual.slice().sort();
  return [sorted[Math.floor(0.02 * (N - 1))], sorted[Math.floor(0.98 * (N - 1))]];
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#888888";
}

const colours = () => about.colours[state.colour].map((each) => (each.startsWith("--") ? cssColour(each) : each));
const colourOf = (row, list) => list[valueOf[state.colour](row)] ?? cssColour("--quiet");
const word = (hex) => (255 << 24) | (parseInt(hex.slice(5, 7), 16) << 16) | (parseInt(hex.slice(3, 5), 16) << 8) | parseInt(hex.slice(1, 3), 16);

// Drawing, at most once a frame.

function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    paint();
  });
}

function resize() {
  ratio = Math.min(2, window.devicePixelRatio || 1);
  ({ clientWidth: width, clientHeight: height } = canvas);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  paint();
}

function paint() {
  if (!width || !height) return;
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const seen = inSight(), list = colours();
  state.visible = seen.length;
  if (seen.length < DOTS_FROM) paintThumbnails(pen, seen, list);
  else paintDots(pen, seen, list);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  paintMarks(pen);
  if (state.drawn) paintOutline(pen, state.drawn);
  window.painted = performance.now();
}

function inSight() {
  const left = fromX(-30), right = fromX(width + 30), top = fromY(-30), bottom = fromY(height + 30), found = [];
  for (let row = 0; row < N; row++) {
    const x = px(row), y = py(row);
    if (x >= left && x <= right && y >= top && y <= bottom) found.push(row);
  }
  return found;
}

/** Squares of a few pixels, written by themselves: 50,000 in a few milliseconds. */
function paintDots(pen, seen, list) {
  const image = pen.createImageData(canvas.width, canvas.height), words = new Uint32Array(image.data.buffer);
  const codes = list.map(word), none = word(cssColour("--quiet")), faint = word(cssColour("--line"));
  const size = Math.max(2, Math.round(ratio * Math.min(7, 2 + Math.sqrt(9000 / seen.length)))), half = size >> 1;
  const dims = state.picked.size > 0;
  for (const pass of dims ? [false, true] : [false]) {
    for (const row of seen) {
      const isPicked = dims && state.picked.has(row);
      if (dims && isPicked !== pass) continue;
      const code = dims && !isPicked ? faint : codes[valueOf[state.colour](row)] ?? none;
      const x0 = Math.round(toX(px(row)) * ratio) - half, y0 = Math.round(toY(py(row)) * ratio) - half;
      for (let y = Math.max(0, y0); y < Math.min(canvas.height, y0 + size); y++) {
        const line = y * canvas.width;
        for (let x = Math.max(0, x0); x < Math.min(canvas.width, x0 + size); x++) words[line + x] = code;
      }
    }
  }
  pen.putImageData(image, 0, 0);
}

/** Sides of thumbnails on the map: what leaves most of them uncovered. */
const tileSide = (seen) => Math.max(22, Math.min(76, Math.sqrt((width * height) / Math.max(1, seen)) * 0.55));

function paintThumbnails(pen, seen, list) {
  const side = tileSide(seen.length), ground = cssColour("--ground");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  for (const row of seen) {
    const x = toX(px(row)) - side / 2, y = toY(py(row)) - side / 2;
    pen.globalAlpha = state.picked.size && !state.picked.has(row) ? 0.35 : 1;
    pen.fillStyle = ground;
    pen.fillRect(x - 3, y - 3, side + 6, side + 6);
    pen.fillStyle = colourOf(row, list);
    pen.fillRect(x - 2, y - 2, side + 4, side + 4);
    drawThumbnail(pen, row, x, y, side);
  }
  pen.globalAlpha = 1;
}

function paintMarks(pen) {
  if (state.chosen === null) return;
  const half = state.visible < DOTS_FROM ? tileSide(state.visible) / 2 + 3 : 5;
  const ring = (row, colour, thick) => {
    pen.strokeStyle = cssColour("--ground");
    pen.lineWidth = thick + 2;
    const at = [toX(px(row)) - half, toY(py(row)) - half, 2 * half, 2 * half];
    pen.strokeRect(...at);
    pen.strokeStyle = cssColour(colour);
    pen.lineWidth = thick;
    pen.strokeRect(...at);
  };
  for (let place = 0; place < K; place++) ring(near[state.chosen * K + place], "--accent", 1.5);
  ring(state.chosen, "--ink", 3);
}

function paintOutline(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
  pen.strokeStyle = cssColour("--accent");
  pen.lineWidth = 1.5;
  pen.setLineDash([5, 4]);
  pen.stroke();
  pen.setLineDash([]);
  pen.globalAlpha = 0.12;
  pen.fillStyle = cssColour("--accent");
  pen.fill();
  pen.globalAlpha = 1;
}

function writeLegend() {
  const list = colours();
  const texts = { cluster: clusters.map((_, number) => `${number + 1}`), class: about.classes, split: about.splits };
  const shown = state.colour === "unusual" ? [] : texts[state.colour].slice(0, 14);
  const items = shown.map((text, number) => element("span", {}, swatch(list[number]), text));
  if (state.colour === "unusual") items.push(element("span", {}, swatch(list[0]), "usual"), element("span", {}, swatch(list.at(-1)), "unusual"));
  if (items.length && state.colour === "cluster") items.unshift(element("span", {}, "cluster"));
  if (state.colour !== "unusual" && texts[state.colour].length > shown.length) items.push(element("span", {}, `and ${texts[state.colour].length - shown.length} more`));
  legend.replaceChildren(...items);
}

function swatch(colour) {
  const made = element("i", { className: "swatch" });
  made.style.background = colour;
  return made;
}

// Which image is there.

let grid = null;

function buildGrid() {
  const cell = (row) => Math.min(CELLS - 1, Math.floor(px(row) * CELLS)) + CELLS * Math.min(CELLS - 1, Math.floor(py(row) * CELLS));
  const starts = new Uint32Array(CELLS * CELLS + 1), rows = new Uint32Array(N);
  for (let row = 0; row < N; row++) starts[cell(row) + 1]++;
  for (let each = 0; each < CELLS * CELLS; each++) starts[each + 1] += starts[each];
  const next = starts.slice();
  for (let row = 0; row < N; row++) rows[next[cell(row)]++] = row;
  return { starts, rows };
}

/** The nearest image to a point of the screen; null where none is near. */
function imageAt(x, y) {
  grid ??= buildGrid();
  const most = state.visible < DOTS_FROM ? tileSide(state.visible) / 2 + 2 : 10, reach = most / scale();
  const at = (value) => Math.max(0, Math.min(CELLS - 1, Math.floor(value * CELLS)));
  const mx = fromX(x), my = fromY(y);
  let best = null, least = Infinity;
  for (let cy = at(my - reach); cy <= at(my + reach); cy++) {
    for (let cx = at(mx - reach); cx <= at(mx + reach); cx++) {
      const cell = cx + CELLS * cy;
      for (let place = grid.starts[cell]; place < grid.starts[cell + 1]; place++) {
        const row = grid.rows[place], far = Math.max(Math.abs(px(row) - mx), Math.abs(py(row) - my));
        if (far <= reach && far <= least) [best, least] = [row, far]; // of those on top of one another the last is seen
      }
    }
  }
  return best;
}

function inOutline(points) {
  return inSight().filter((row) => {
    const x = toX(px(row)), y = toY(py(row));
    let inside = false;
    for (let a = 0, b = points.length - 1; a < points.length; b = a++) {
      const [xa, ya] = points[a], [xb, yb] = points[b];
      if (ya > y !== yb > y && x < ((xb - xa) * (y - ya)) / (yb - ya) + xa) inside = !inside;
    }
    return inside;
  });
}

// Moving.

function zoomAt(x, y, times) {
  const [mx, my] = [fromX(x), fromY(y)];
  view.zoom = Math.max(0.5, Math.min(400, view.zoom * times));
  view.x += mx - fromX(x);
  view.y += my - fromY(y);
  draw();
}

function wholeMap() {
  Object.assign(view, { x: 0.5, y: 0.5, zoom: 1 });
  draw();
}

function showOnMap(row) {
  const x = toX(px(row)), y = toY(py(row));
  if (x < 20 || y < 20 || x > width - 20 || y > height - 20) Object.assign(view, { x: px(row), y: py(row) });
  draw();
}
