// Curves as SVG: a small one for a row of the list, and a chart with axes that can be read with the pointer.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = [0, 3, 2, 4, 1, 5, 9, 8]; // of the palette of all pages, without those of ink and of pale lines
const MARGIN = { left: 50, right: 10, top: 8, bottom: 24 };
const HEIGHT = 210;
const FEW = 30; // points that are marked one by one

/** The class of the n-th curve: eight colours, then the same ones dashed. */
export const colour = (n) => `colour-${COLOURS[n % COLOURS.length]}${n >= COLOURS.length ? " dashed" : ""}`;

/** A number with four digits that count. */
export function short(value) {
  const size = Math.abs(value);
  if (value % 1 === 0 && size < 1e6) return value.toLocaleString("en").replace("-", "−");
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
  const text = value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: Math.min(digits, 2) });
  return text.replace("-", "−");
}

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** The d of a path through points; it breaks where a value is null. */
function path(points, x, y) {
  let pen = "M", text = "";
  for (const [step, value] of points) {
    if (value === null) pen = "M";
    else {
      text += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  }
  return text;
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  return low === high ? [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2] : [low, high];
}

const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
const finite = (points) => points.filter(([, value]) => value !== null);

/** Some curves in the space of a few words, each with a dot at its end. */
export function sparkline(curves, label, until, colours = curves.map((_, n) => colour(n))) {
  const [width, height] = [90, 26];
  const spoken = label ? { role: "img", "aria-label": label } : { "aria-hidden": true };
  const svg = draw(document.createDocumentFragment(), "svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, ...spoken });
  const known = curves.map(finite);
  const all = known.flat();
  if (!all.length) return svg;
  const x = scale([0, Math.max(until || 0, ...known.map((points) => points.at(-1)?.[0] ?? 0), 1)], 2, width - 4);
  const y = scale(range(all.map((point) => point[1])), height - 4, 4);
  curves.forEach((points, n) => {
    if (!known[n].length) return;
    draw(svg, "path", { d: path(points, x, y), class: `curve ${colours[n]}` });
    const [step, value] = known[n].at(-1);
    draw(svg, "circle", { cx: x(step), cy: y(value), r: 2.2, class: colours[n] });
  });
  return svg;
}

/** Exponential mean of what came before, as TensorBoard's: weight 0 leaves all as it is. */
export function smoothed(points, weight) {
  let mean = 0, known = 0;
  return points.map(([step, value]) => {
    if (value === null) return [step, null];
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return [step, mean / known];
  });
}

/** Round numbers within a range, about so many. */
function ticks([low, high], about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].find((each) => each * power >= raw) * power;
  const found = [];
  for (let n = Math.ceil(low / size - 1e-9); n * size <= high + size * 1e-9; n++) found.push(n * size);
  return found;
}

function tickText(value, all) {
  const size = Math.max(...all.map(Math.abs));
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e").replace(".0e", "e").replace(/^-/, "−");
  if (size >= 1e4) return `${+(value / 1e3).toFixed(3)}k`.replace("-", "−");
  return `${+value.toPrecision(4)}`.replace("-", "−");
}

/** An HTML element with a class, at the end of another. */
function put(parent, tag, name, text = "") {
  const made = parent.appendChild(document.createElement(tag));
  made.className = name;
  made.textContent = text;
  return made;
}

/** One metric of some runs: a line with its ends, which opens to a chart. `show` draws what is given to it. */
export class Chart {
  constructor(title, sentence, open) {
    this.element = document.createElement("details");
    Object.assign(this.element, { className: "chart", open });
    this.line = put(this.element, "summary", "");
    put(this.line, "h3", "").append(...title.split(/(?<=[_/])/).flatMap((part) => [part, document.createElement("wbr")]));
    this.brief = put(this.line, "span", "brief");
    put(this.element, "p", "meaning", sentence);
    this.reading = put(this.element, "p", "reading quiet");
    this.svg = draw(this.element, "svg", { role: "img", "aria-label": title, height: HEIGHT });
    this.element.addEventListener("toggle", () => this.curves && this.draw());
    this.at = null; // where the pointer is, in pixels
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.curves && this.draw()).observe(this.element);
  }

  /**
   * @param curves [{name, colour, ends: [first, last], points: [[x, value or null]]}]
   * @param options {log, weight, xName, line, band}: line is a value to mark, with its name: [value, "collapsed"];
   *   band: the healthy values from and to, null for no bound
   */
  show(curves, options) {
    this.curves = curves.map((curve) => ({ ...curve, drawn: smoothed(curve.points, options.weight) }));
    this.options = options;
    if (options.log)
      for (const curve of this.curves) curve.drawn = curve.drawn.map(([x, v]) => [x, v > 0 ? Math.log10(v) : null]);
    this.summarise();
    this.draw();
  }

  /** The curve in small, with its first and its last value; of several runs the last ones. */
  summarise() {
    const text = (value) => (value === null ? "not finite" : short(value));
    this.brief.replaceChildren(sparkline(this.curves.map((curve) => curve.points), "", 0, this.curves.map((curve) => curve.colour)));
    if (this.curves.length < 2) put(this.brief, "span", "", this.curves[0].ends.map(text).join(" → "));
    else for (const curve of this.curves.slice(0, 4)) put(put(this.brief, "span", "", text(curve.ends[1])), "i", `dot ${curve.colour}`);
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width || !this.element.open) return;
    this.svg.setAttribute("width", width);
    this.svg.replaceChildren();
    const { log, line } = this.options;
    const values = this.curves.flatMap((curve) => finite(curve.drawn).map((point) => point[1]));
    const mark = line && (!log || line[0] > 0) ? (log ? Math.log10(line[0]) : line[0]) : null;
    const [low, high] = range(mark === null ? values : [...values, mark]);
    const rim = 0.04 * (high - low);
    this.xs = [0, Math.max(1e-9, ...this.curves.map((curve) => curve.points.at(-1)?.[0] ?? 0))];
    this.x = scale(this.xs, MARGIN.left, width - MARGIN.right);
    this.y = scale([low - rim, high + rim], HEIGHT - MARGIN.bottom, MARGIN.top);
    this.healthy(width, [low - rim, high + rim], log);
    this.axes(width, [low - rim, high + rim], log);
    if (mark !== null) this.mark(mark, line[1], width);
    for (const curve of this.curves) {
      if (this.options.weight && !log) draw(this.svg, "path", { d: path(curve.points, this.x, this.y), class: `curve faint ${curve.colour}` });
      draw(this.svg, "path", { d: path(curve.drawn, this.x, this.y), class: `curve ${curve.colour}` });
      const known = finite(curve.drawn);
      for (const [x, value] of known.length <= FEW ? known : [])
        draw(this.svg, "circle", { cx: this.x(x), cy: this.y(value), r: 2.6, class: curve.colour });
    }
    this.pointer = draw(this.svg, "path", { class: "pointer", d: "" });
    this.point(this.at);
  }

  axes(width, [low, high], log) {
    const rows = ticks([low, high], 6), columns = ticks(this.xs, width < 420 ? 4 : 6);
    for (const value of rows) {
      const y = this.y(value);
      draw(this.svg, "path", { class: "grid", d: `M${MARGIN.left} ${y}H${width - MARGIN.right}` });
      const real = log ? 10 ** value : value;
      draw(this.svg, "text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, log ? short(real) : tickText(real, rows));
    }
    draw(this.svg, "text", { x: MARGIN.left - 14, y: HEIGHT - 6, "text-anchor": "end" }, this.options.xName);
    for (const value of columns) {
      const anchor = this.x(value) > width - 30 ? "end" : "middle";
      draw(this.svg, "text", { x: this.x(value), y: HEIGHT - 6, "text-anchor": anchor }, tickText(value, columns));
    }
  }

  /** The healthy values as a ground, as far as they are in sight. */
  healthy(width, [low, high], log) {
    const [from, to] = this.options.band ?? [null, null];
    if (from === null && to === null) return;
    const at = (value, none) => (value === null || (log && value <= 0) ? none : Math.min(high, Math.max(low, log ? Math.log10(value) : value)));
    const [top, bottom] = [this.y(at(to, high)), this.y(at(from, low))];
    draw(this.svg, "rect", { class: "band", x: MARGIN.left, y: top, width: width - MARGIN.left - MARGIN.right, height: Math.max(0, bottom - top) });
  }

  mark(value, name, width) {
    draw(this.svg, "path", { class: "level", d: `M${MARGIN.left} ${this.y(value)}H${width - MARGIN.right}` });
    const below = this.y(value) < MARGIN.top + 20;
    draw(this.svg, "text", { x: width - MARGIN.right, y: this.y(value) + (below ? 14 : -5), "text-anchor": "end", class: "level-name" }, name);
  }

  /** Say what stands below the pointer, or the last values where there is none. */
  point(at) {
    this.at = at;
    const nearest = this.curves.map((curve) => (at === null ? curve.points.at(-1) : this.nearest(finite(curve.points), at)));
    const place = nearest.find((point) => point)?.[0];
    this.pointer?.setAttribute("d", at === null || place === undefined ? "" : `M${this.x(place)} ${MARGIN.top}V${HEIGHT - MARGIN.bottom}`);
    const said = this.curves.map((curve, n) => {
      const span = document.createElement("span");
      put(span, "i", `dot ${curve.colour}`);
      span.append(typeof nearest[n]?.[1] === "number" ? short(nearest[n][1]) : "not finite");
      span.title = curve.name;
      return span;
    });
    const where = at === null || place === undefined ? "last" : `${this.options.xName} ${place.toLocaleString("en", { maximumFractionDigits: 2 })}`;
    this.reading.replaceChildren(where, ...said);
  }

  nearest(points, at) {
    if (!points.length) return null;
    return points.reduce((best, point) => (Math.abs(this.x(point[0]) - at) < Math.abs(this.x(best[0]) - at) ? point : best));
  }
}
