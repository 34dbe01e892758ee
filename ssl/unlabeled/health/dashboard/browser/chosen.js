// The page of one run, or of several: their curves upon each other, and the keys that differ.

import { Chart, colour, short } from "/charts.js";
import { notesOf } from "/notes.js";
import { choice, count, details, element, fits, listened, narrow, page, plural, runs, search, settings, state } from "/parts.js";
import { Table } from "/table.js";

const GROUPS = { training: "Training", probes: "Probes and final scores", health: "Health", plan: "Planned values", system: "Machine and speed" };
const OPEN = ["train/loss", "probe/knn_top1"]; // on a phone
const LOSS = "train/loss";

export class Chosen {
  constructor(addresses) {
    this.addresses = addresses;
    this.charts = new Map(); // name → Chart
    this.slid = new Map(); // kind of picture → which one is shown, if it is not the last
    this.table = new Table((_, n) => swatch(n));
    this.title = element("h1");
    this.missing = element("p", { className: "empty" });
    this.own = element("div");
    this.facts = element("div", { className: "facts" });
    this.groups = Object.entries(GROUPS).map(([group, words]) => {
      const charts = element("div", { className: "groups" }), constants = element("p", { className: "constants" });
      const section = element("details", { className: "section", open: !narrow() || ["training", "probes"].includes(group), hidden: true }, element("summary", {}, element("h2", {}, words)), charts, constants);
      return { group, charts, constants, section };
    });
    page.replaceChildren(element("header", {}, element("nav", {}, element("a", { href: "#" }, "‹ all runs")), this.title),
      this.missing, this.table.element, this.own, this.controls(), ...this.groups.map((each) => each.section), this.facts);
    this.update();
  }

  controls() {
    const log = listened(element("input", { type: "checkbox", checked: settings.log }), "change", () => ((settings.log = log.checked), this.draw()));
    const weight = listened(element("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: settings.weight }), "input", () => ((settings.weight = Number(weight.value)), this.draw()));
    return element("div", { className: "controls" }, search("metric", "filter metrics", "filter metrics", () => this.draw()),
      element("label", {}, "by ", choice("x", "by", [["step", "step"], ["epoch", "epoch"], ["time", "time"]], () => this.draw())),
      element("label", {}, log, " logarithmic"), element("label", {}, "smooth ", weight));
  }

  update() {
    const here = this.addresses.filter((address) => runs.has(address));
    const gone = this.addresses.length - here.length;
    const said = here.filter((address) => details.get(address)?.trouble).map((address) => `${runs.get(address).name}: ${details.get(address).trouble}.`);
    if (gone && state.answered) said.push(`${plural(gone, "run")} of this page not found in the folder.`);
    for (const address of here) if (settings.x === "time" && details.get(address)?.seconds?.length === 0) said.push(`${runs.get(address).name} wrote no times.`);
    this.missing.textContent = said.join(" ");
    this.title.textContent = this.addresses.length > 1 ? `${this.addresses.length} runs compared` : (runs.get(here[0])?.name ?? "");
    document.title = this.title.textContent || "Runs";
    this.table.show(here);
    for (const address of here) if (details.get(address)?.of !== runs.get(address)) this.ask(address);
  }

  async ask(address) {
    const of = runs.get(address);
    if (this.asking) return;
    this.asking = true;
    try {
      const got = await (await fetch(`/api/run?of=${address}`)).json();
      details.set(address, { ...got, of: got.unfinished ? null : of });
    } catch {
      return; // a server that is gone is said by who asks for the list
    } finally {
      this.asking = false;
    }
    if (state.view !== this) return;
    this.draw();
    this.tell();
    this.update();
  }

  known() {
    return this.addresses.map((address) => details.get(address)).filter(Boolean);
  }

  /** What is drawn: a metric, or the loss of one method, as losses of several are not of one kind. */
  drawings() {
    const known = this.known();
    const methods = [...new Set(known.map((run) => run.method))];
    const metrics = [...new Set(known.flatMap((run) => Object.keys(run.curves ?? {})))];
    return metrics.flatMap((metric) => {
      const meaning = known.find((run) => run.meanings?.[metric]).meanings[metric];
      const split = metric === LOSS && methods.length > 1 ? methods : [null];
      return split.map((method) => ({ metric, method, meaning, name: method === null ? metric : `${metric}, ${method || "unknown method"}` }));
    }).filter(({ name }) => fits(name, settings.metric));
  }

  curves({ metric, method }) {
    return this.addresses.flatMap((address, n) => {
      const run = details.get(address), points = run?.curves?.[metric];
      if (!points || (method !== null && run.method !== method)) return [];
      const x = this.scaleOf(run);
      return x ? [{ name: run.name, colour: colour(n), ends: run.ends[metric], points: points.map(([step, value]) => [x(step), value]) }] : [];
    });
  }

  /** From a step to what curves are drawn by. */
  scaleOf(run) {
    if (settings.x === "epoch" && run.steps_per_epoch) return (step) => step / run.steps_per_epoch;
    if (settings.x !== "time") return (step) => step;
    const seconds = clock(run), unit = this.unit()[1];
    return seconds && ((step) => seconds(step) / unit);
  }

  unit() {
    const longest = Math.max(...this.known().map((run) => run.seconds?.at(-1)?.[1] ?? 0));
    return longest < 300 ? ["s", 1] : longest < 3 * 3600 ? ["min", 60] : ["h", 3600];
  }

  draw() {
    const drawings = this.drawings(), place = (metric) => (metric === LOSS ? 0 : metric.startsWith("probe/") ? 1 : 2);
    drawings.sort((a, b) => place(a.metric) - place(b.metric) || a.name.localeCompare(b.name));
    const xName = settings.x === "time" ? this.unit()[0] : settings.x;
    for (const { group, section, charts, constants } of this.groups) {
      const shown = [], lines = [];
      for (const drawing of drawings.filter((each) => each.meaning.group === group)) {
        const curves = this.curves(drawing);
        if (!curves.length) continue;
        if (drawing.metric !== LOSS && curves.every(constant)) lines.push(constantLine(drawing, curves));
        else shown.push(this.chart(drawing, curves, xName));
      }
      if (shown.length !== charts.children.length || shown.some((each, n) => each !== charts.children[n])) charts.replaceChildren(...shown);
      constants.replaceChildren(...(lines.length ? ["Constant, or measured once: ", ...lines.flatMap((line, n) => (n ? [" · ", line] : [line]))] : []));
      section.hidden = !shown.length && !lines.length;
    }
  }

  chart(drawing, curves, xName) {
    const { name, metric, method, meaning } = drawing;
    if (!this.charts.has(name)) this.charts.set(name, new Chart(name, meaning.sentence, !narrow() || OPEN.includes(metric)));
    const levels = new Set(this.known().filter((run) => method === null || run.method === method).map((run) => run.collapsed_at));
    const line = metric === LOSS && levels.size === 1 && typeof [...levels][0] === "number" ? [[...levels][0], "collapsed"] : null;
    this.charts.get(name).show(curves, { log: settings.log, weight: settings.weight, xName, line, band: [meaning.low ?? null, meaning.high ?? null] });
    return this.charts.get(name).element;
  }

  tell() {
    const known = this.addresses.filter((address) => details.has(address));
    const open = this.facts.querySelector("details")?.open;
    if (this.addresses.length === 1 && known.length && !this.own.children.length) this.own.append(...startOf(known[0]));
    const parts = known.length > 1 ? [differences(known)] : known.flatMap((address) => [...this.pictures(address), ...aboutOne(address)]);
    this.facts.replaceChildren(...parts);
    for (const each of this.facts.querySelectorAll("details")) each.open = open;
  }

  /** One picture of each kind, with a slider through the steps. */
  pictures(address) {
    const kinds = Object.entries(details.get(address).pictures ?? {});
    if (!kinds.length) return [];
    const figures = kinds.map(([kind, files]) => {
      const image = element("img"), caption = element("figcaption", { className: "quiet" });
      const show = (n) => {
        const [step, file] = files[n];
        if (image.getAttribute("src") !== at(address, file)) image.src = at(address, file);
        image.alt = step === null ? kind : `${kind}, step ${count(step)}`;
        caption.textContent = `${image.alt}${files.length > 1 ? ` (${n + 1} of ${files.length})` : ""}`;
      };
      const last = files.length - 1, shown = Math.min(this.slid.get(kind) ?? last, last);
      show(shown);
      if (!last) return element("figure", {}, image, caption);
      const slider = element("input", { type: "range", max: last, value: shown, ariaLabel: `step of ${kind}` });
      listened(slider, "input", () => (this.slid.set(kind, Number(slider.value)), show(Number(slider.value))));
      return element("figure", {}, image, slider, caption);
    });
    return [section("Pictures", element("div", { className: "pictures" }, ...figures))];
  }
}

const at = (address, file) => `/files/${address}/${file.split("/").map(encodeURIComponent).join("/")}`;
const swatch = (n) => element("span", { className: `swatch ${colour(n)}` });
const constant = ({ points }) => points.every(([, value]) => value !== null && value === points[0][1]);

/** From a step to seconds of training; null where they are not known. */
function clock({ seconds }) {
  if (!seconds?.length) return null;
  return (step) => {
    const found = seconds.findIndex(([each]) => each >= step), next = Math.max(1, found < 0 ? seconds.length - 1 : found);
    const [[a, before], [b, after]] = [seconds[next - 1], seconds[next]];
    return b === a ? after : before + ((after - before) * (step - a)) / (b - a);
  };
}

function constantLine({ name, meaning }, curves) {
  const values = [...new Set(curves.map(({ points }) => points[0][1]))];
  const ill = values.some((value) => value < (meaning.low ?? -Infinity) || value > (meaning.high ?? Infinity));
  return element("span", { title: meaning.sentence, className: ill ? "wrong" : "" }, `${name} ${values.map((value) => (value === null ? "not finite" : short(value))).join(" / ")}`);
}

/** The command of a run, to be copied, and its note. */
function startOf(address) {
  const { command } = details.get(address), parts = [];
  if (command) {
    const text = element("code", {}, command), button = element("button", { type: "button" }, "copy");
    listened(button, "click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(text); // a browser that forbids it: Ctrl-C does the rest
        button.textContent = "selected";
      }
    });
    parts.push(element("div", { className: "command" }, text, button));
  }
  return [...parts, notesOf(address)];
}

/** Keys whose values are not the same in all runs; what names a run always differs. */
function differences(addresses) {
  const configs = addresses.map((address) => details.get(address).settings ?? {});
  const keys = [...new Set(configs.flatMap((config) => Object.keys(config)))];
  const other = keys.filter((key) => configs.some((config) => config[key] !== configs[0][key])).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const title = "Keys that differ";
  if (!other.length) return section(title, element("p", { className: "quiet" }, "None but name and folder."));
  const head = addresses.map((address, n) => element("th", { scope: "col" }, swatch(n), runs.get(address)?.name ?? address));
  const lines = other.map((key) => keyLine(key, ...configs.map((config) => config[key] ?? "–")));
  return section(title, keyTable([element("thead", {}, element("tr", {}, element("th", {}, "key"), ...head)), element("tbody", {}, ...lines)]));
}

const section = (title, ...parts) => element("section", {}, element("h2", {}, title), ...parts);
const keyLine = (key, ...values) => element("tr", {}, element("th", { scope: "row" }, key), ...values.map((value) => element("td", {}, value)));
const keyTable = (parts) => element("div", { className: "scroll", tabIndex: 0 }, element("table", { className: "keys" }, ...parts));

function aboutOne(address) {
  const run = details.get(address), parts = [];
  const pages = (run.pages ?? []).map((file) => element("li", {}, element("a", { href: at(address, file), target: "_blank", rel: "noopener" }, file)));
  if (pages.length) parts.push(section("Pages", element("ul", { className: "pages" }, ...pages)));
  const lines = Object.entries(run.config ?? {}).map(([key, value]) => keyLine(key, value));
  if (lines.length) parts.push(element("details", {}, element("summary", {}, "Configuration"), keyTable([element("tbody", {}, ...lines)])));
  return parts;
}
