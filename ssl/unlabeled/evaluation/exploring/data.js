// What lies in the page: numbers of N images, and sheets of their thumbnails. Names are set as text, never as HTML.

const about = JSON.parse(document.getElementById("about").textContent);
const names = about.names, N = names.length, K = about.neighbours, SIDE = about.side, PER_ROW = about.perRow;

/** The bytes of a base64 text. */
function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const read = atob(text), found = new Uint8Array(read.length);
  for (let i = 0; i < read.length; i++) found[i] = read.charCodeAt(i);
  return found;
}

function numbers(name, kind) {
  const block = document.getElementById(name);
  const found = new kind(bytes(block.textContent.trim()).buffer);
  block.remove();
  return found;
}

const positions = numbers("positions", Uint16Array); // x and y of each, 65535 is the width of the map
const cluster = numbers("cluster", Uint16Array);
const members = numbers("members", Uint32Array); // cluster after cluster, the most central image first
const label = numbers("label", Int32Array); // −1: none
const near = numbers("near", Uint32Array);
const cosines = numbers("cosine", Uint16Array);
const unusual = numbers("unusual", Float32Array);
const outliers = numbers("outliers", Uint32Array);
const typical = numbers("typical", Uint32Array);
const covering = numbers("covering", Uint32Array);
const clusters = []; // of each: its images, the most central first

for (let first = 0; first < N; ) {
  let end = first;
  while (end < N && cluster[members[end]] === cluster[members[first]]) end++;
  clusters.push(members.subarray(first, end));
  first = end;
}

const cosine = (row, place) => (cosines[row * K + place] / 65535) * 2 - 1;
const hasClasses = about.classes.length > 0 && label.some((each) => each >= 0);
const className = (row) => (label[row] < 0 ? "no label" : about.classes[label[row]]);
const count = (value) => value.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

// Sheets: JPEGs of many thumbnails, decoded when they are first needed and then in order.

const sheets = new Map(); // number → bitmap, or the promise of one
const perSheet = PER_ROW * PER_ROW;
let parsed = document.readyState !== "loading";
let whenDrawn = () => {};

/** The bitmap of an image's sheet; null while it is decoded, and then `whenDrawn` is called. */
function sheet(row) {
  const number = Math.floor(row / perSheet);
  const found = sheets.get(number);
  if (found instanceof ImageBitmap) return found;
  if (!found) decode(number);
  return null;
}

function decode(number) {
  const block = document.querySelectorAll("script.sheet")[number];
  if (!block || (!parsed && !block.nextElementSibling)) return null; // the browser has not read it to its end
  const made = createImageBitmap(new Blob([bytes(block.textContent.trim())], { type: "image/jpeg" }));
  const kept = made.then((bitmap) => {
    sheets.set(number, bitmap);
    block.textContent = "";
    whenDrawn();
  });
  sheets.set(number, kept);
  return kept;
}

/** Decodes all sheets, one after another, so that nothing waits for them later. */
async function decodeAll() {
  for (let number = 0; number * perSheet < N; number++) await (sheets.get(number) ?? decode(number));
}

/** Draws one thumbnail; returns whether it is there. */
function drawThumbnail(pen, row, x, y, size) {
  const bitmap = sheet(row);
  if (!bitmap) return false;
  const place = row % perSheet;
  const left = (place % PER_ROW) * SIDE, top = Math.floor(place / PER_ROW) * SIDE;
  pen.imageSmoothingEnabled = size < SIDE * 4;
  pen.drawImage(bitmap, left + 0.5, top + 0.5, SIDE - 1, SIDE - 1, x, y, size, size); // smoothing would mix in its neighbours
  return true;
}
