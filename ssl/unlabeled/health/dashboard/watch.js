// The list of runs, and the page of the chosen ones. All that runs wrote is set as text, never as HTML.

import { Chart, colour, short, sparkline } from "/charts.js";

const EVERY = 2000; // milliseconds between two questions
const STATES = {
  running: "running", starting: "starting", planned: "planned", silent: "no sign of life", failed: "failed", killed: "stopped without a word",
  damaged: "damaged", interrupted: "stopped", unknown: "unknown", finished: "finished",
};
const PROBES = { "probe/knn_top1": "k-NN", "probe/linear_top1": "linear" };
const ORDERS = {
  "running first": (a, b) => live(b) - live(a) || (live(a) ? 0 : b.updated - a.updated) || byName(a, b),
  "by name": (a, b) => byName(a, b),
  "lowest loss first": (a, b) => (a.loss?.last ?? Infinity) - (b.loss?.last ?? Infinity) || byName(a, b),
  "highest probe first": (a, b) => (b.probes?.[0]?.last ?? -1) - (a.probes?.[0]?.last ?? -1) || byName(a, b),
};
const live = (run) => Number(["running", "starting", "silent"].includes(run.state));
const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });

const page = document.getElementById("page");
const runs = new Map(); // address → what the server says of a run
const details = new Map(); // address → the same of a chosen run, with everything
const picked = new Set();
const settings = { filter: "", order: "running first", metric: "", x: "step", log: false, weight: 0 };
let answer = { token: "", now: Date.now() / 1000, notes: [], folder: "", addresses: [] };
let answered = 0; // when, on this machine's clock
let view = null;

/** An element; `children` are elements or texts. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const count = (value) => Math.round(value).toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (value) => value.toFixed(1);
const probeName = (name) => PROBES[name] ?? name.replace("probe/", "");
const link = (addresses) => `#runs=${addresses.join(",")}`;

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A time ago, which `tellTimes` keeps right. */
function ago(time, before, after) {
  const span = element("span", { className: "ago" });
  Object.assign(span.dataset, { time, before, after });
  tellTime(span);
  return span;
}

function tellTime(span) {
  const now = answer.now + (answered ? (performance.now() - answered) / 1000 : 0);
  span.textContent = `${span.dataset.before}${duration(now - span.dataset.time)}${span.dataset.after}`;
}

// One run in a table: a line of numbers, and below it what there is to say.

function row(address, run, mark) {
  const line = element("tr", { className: "numbers" },
    element("td", { className: "mark" }, mark),
    element("th", { className: "name", scope: "row" }, element("a", { href: link([address]) }, run.name), element("small", {}, run.about ?? "", ...report(address, run))),
    element("td", { className: "state" }, badge(run.state), element("small", {}, when(run))),
    element("td", { className: "progress" }, ...progress(run)),
    cell("loss", "loss", curveOf(run.loss ? [{ ...run.loss, name: "loss" }] : [], run, "loss")),
    cell("probe", "online probe", curveOf(run.probes ?? [], run, "online probe")),
    cell("speed", "images/s", [run.images_per_second ? count(run.images_per_second) : "–"]),
    cell("left", "time left", [typeof run.seconds_left === "number" ? duration(run.seconds_left) : "–"]));
  return element("tbody", { className: `run is-${run.state}` }, line, sentences(run));
}

function report(address, run) {
  if (!run.report) return [];
  return [run.about ? " · " : "", element("a", { href: `/files/${address}/report/report.html`, target: "_blank", rel: "noopener" }, "report")];
}

function cell(name, label, children) {
  const made = element("td", { className: `${name} value` }, ...children);
  made.dataset.label = label;
  return made;
}

const badge = (state) => element("span", { className: `badge ${state}` }, STATES[state] ?? state);

function when(run) {
  if (!run.updated) return "";
  if (run.state === "running") return run.started ? ago(run.started, "for ", "") : "";
  return ago(run.updated, run.state === "silent" ? "for " : "", run.state === "silent" ? "" : " ago");
}

function progress(run) {
  const share = run.total ? Math.min(1, (run.step ?? 0) / run.total) : null;
  const bar = element("div", { className: "bar" }, element("div", { className: "done" }));
  bar.firstChild.style.width = `${100 * (share ?? 0)}%`;
  if (run.step === undefined) return [];
  const of = run.total ? `${count(run.step)} of ${count(run.total)}` : `step ${count(run.step)}`;
  return [bar, element("span", { className: "steps" }, of), element("small", {}, share === null ? "" : `${Math.floor(100 * share)} %`)];
}

function curveOf(curves, run, label) {
  const known = curves.filter((curve) => curve.any);
  if (!known.length) return ["–"];
  const last = known.map((curve, n) => element("span", {}, known.length > 1 ? element("i", { className: `dot ${colour(n)}` }) : null,
    curve.last === null ? element("strong", { className: "wrong" }, "not finite") : (curve.name === "loss" ? short : percent)(curve.last),
    curve.name === "loss" ? "" : element("small", {}, ` ${probeName(curve.name)}`)));
  return [sparkline(known.map((curve) => curve.points), label, run.total), element("span", { className: "last" }, ...last)];
}

function sentences(run) {
  const said = [];
  if (run.sentence) said.push(["", run.sentence]);
  for (const problem of run.problems ?? []) said.push(["damaged", problem]);
  for (const finding of run.findings ?? []) said.push([finding.past ? "past" : finding.severity, finding.sentence]);
  for (const doubt of run.doubts ?? []) said.push(["plan", doubt]);
  const items = said.map(([kind, text]) => element("li", { className: kind }, kind && element("b", {}, kind), text));
  const held = element("td", { colSpan: 7 }, element("ul", {}, ...items));
  return element("tr", { className: "said", hidden: !said.length }, element("td"), held);
}

/** A table of runs whose rows are made anew only where a run has changed. */
class Table {
  constructor(markOf) {
    this.markOf = markOf;
    this.rows = new Map(); // address → [content, tbody]
    const names = ["", "run", "state", "step", "loss", "online probe", "images/s", "time left"];
    const head = element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
    this.element = element("table", { className: "runs" }, head);
  }

  show(addresses) {
    for (const [address, [, body]] of this.rows) if (!addresses.includes(address)) (body.remove(), this.rows.delete(address));
    addresses.forEach((address, n) => {
      const run = runs.get(address), [content, old] = this.rows.get(address) ?? [];
      if (content !== run) {
        const made = row(address, run, old ? null : this.markOf(address, n));
        if (old) renew(old, made);
        this.rows.set(address, [run, old ?? made]);
      }
      const body = this.rows.get(address)[1];
      if (this.element.children[n + 1] !== body) this.element.insertBefore(body, this.element.children[n + 1] ?? null);
    });
  }
}

/** A row with the content of another; its checkbox stays, and with it the focus. */
function renew(old, made) {
  const [numbers, said] = old.children;
  for (const each of [...numbers.children].slice(1)) each.remove();
  numbers.append(...[...made.firstChild.children].slice(1));
  said.replaceWith(made.lastChild);
  old.className = made.className;
}

class List {
  constructor() {
    this.table = new Table((address) => {
      const box = element("input", { type: "checkbox", checked: picked.has(address), ariaLabel: `choose ${runs.get(address).name}` });
      box.addEventListener("change", () => (box.checked ? picked.add(address) : picked.delete(address), this.showPicked()));
      return box;
    });
    const filter = element("input", { type: "search", placeholder: "filter by name, method, state", value: settings.filter, ariaLabel: "filter runs" });
    filter.addEventListener("input", () => ((settings.filter = filter.value), this.update()));
    this.counts = element("p", { className: "headline" });
    this.folder = element("p", { className: "quiet" });
    const order = choice("order", Object.keys(ORDERS), () => this.update());
    this.controls = element("div", { className: "controls" }, filter, element("label", {}, "sort ", order));
    this.empty = element("p", { className: "empty" });
    this.notes = element("ul", { className: "notes quiet" });
    this.picked = element("div", { className: "picked" });
    page.replaceChildren(element("header", {}, element("h1", {}, "Runs"), this.folder, this.counts),
      this.controls, this.empty, this.table.element, this.notes, this.picked);
    this.update();
  }

  update() {
    const words = settings.filter.toLowerCase().split(/\s+/);
    const text = (run) => `${run.name} ${run.about ?? ""} ${STATES[run.state]}`.toLowerCase();
    const all = [...runs.entries()];
    const kept = all.filter(([, run]) => words.every((word) => text(run).includes(word)));
    kept.sort(([, a], [, b]) => ORDERS[settings.order](a, b));
    this.table.show(kept.map(([address]) => address));
    this.folder.textContent = answer.folder;
    this.counts.replaceChildren(...counts(all.map(([, run]) => run)));
    this.table.element.hidden = !kept.length;
    this.controls.hidden = !all.length;
    this.empty.textContent = kept.length || !answered ? "" : all.length
      ? "No run fits the filter." : "No run is here yet. It will appear as soon as one starts: python train.py experiment=digits";
    this.notes.replaceChildren(...answer.notes.map((note) => element("li", {}, note)));
    for (const address of picked) if (!runs.has(address)) picked.delete(address);
    this.showPicked();
    document.title = `Runs: ${all.filter(([, run]) => run.state === "running").length} of ${all.length} running`;
  }

  showPicked() {
    const clear = element("button", { type: "button" }, "clear");
    clear.addEventListener("click", () => {
      picked.clear();
      for (const box of this.table.element.querySelectorAll("input")) box.checked = false;
      this.showPicked();
    });
    const open = element("a", { href: link([...picked]), className: "button" }, picked.size > 1 ? `Compare ${picked.size} runs` : "Open this run");
    this.picked.hidden = !picked.size;
    this.picked.replaceChildren(open, clear);
  }
}

function counts(all) {
  const parts = [plural(all.length, "run")];
  for (const [state, name] of Object.entries(STATES)) {
    const number = all.filter((run) => (state === "damaged" ? run.problems.length : run.state === state)).length;
    if (number) parts.push(`${number} ${name}`);
  }
  const alarmed = all.filter((run) => run.findings?.some((finding) => finding.severity === "alarm" && !finding.past)).length;
  return [parts.join(" · "), ...(alarmed ? [element("strong", { className: "wrong" }, ` · ${alarmed} with an alarm`)] : [])];
}

/** A select for one of the settings. */
function choice(name, values, changed) {
  const made = element("select", { ariaLabel: name }, ...values.map((value) => element("option", { selected: value === settings[name] }, value)));
  made.addEventListener("change", () => ((settings[name] = made.value), changed()));
  return made;
}

/** The page of one run, or of several: their curves upon each other, and the keys that differ. */
class Chosen {
  constructor(addresses) {
    this.addresses = addresses;
    this.charts = new Map(); // metric → Chart
    this.table = new Table((_, n) => element("span", { className: `swatch ${colour(n)}` }));
    this.title = element("h1");
    this.missing = element("p", { className: "empty" });
    this.groups = element("div", { className: "groups" });
    this.facts = element("div", { className: "facts" });
    page.replaceChildren(element("header", {}, element("nav", {}, element("a", { href: "#" }, "‹ all runs")), this.title),
      this.missing, this.table.element, this.controls(), this.groups, this.facts);
    this.update();
  }

  controls() {
    const filter = element("input", { type: "search", placeholder: "filter metrics", value: settings.metric, ariaLabel: "filter metrics" });
    filter.addEventListener("input", () => ((settings.metric = filter.value), this.draw()));
    const log = element("input", { type: "checkbox", checked: settings.log });
    log.addEventListener("change", () => ((settings.log = log.checked), this.draw()));
    const weight = element("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: settings.weight });
    weight.addEventListener("input", () => ((settings.weight = Number(weight.value)), this.draw()));
    return element("div", { className: "controls" }, filter,
      element("label", {}, "by ", choice("x", ["step", "epoch"], () => this.draw())),
      element("label", {}, log, " logarithmic"), element("label", {}, "smooth ", weight));
  }

  update() {
    const here = this.addresses.filter((address) => runs.has(address));
    const gone = this.addresses.length - here.length;
    const said = here.filter((address) => details.get(address)?.trouble).map((address) => `${runs.get(address).name}: ${details.get(address).trouble}.`);
    if (gone && answered) said.push(`${plural(gone, "run")} of this page ${gone === 1 ? "is" : "are"} not in the folder.`);
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
      details.set(address, { ...got, of });
    } catch {
      return; // a server that is gone is said by who asks for the list
    } finally {
      this.asking = false;
    }
    if (view !== this) return;
    this.draw();
    this.tell();
    this.update();
  }

  curves(metric) {
    return this.addresses.flatMap((address, n) => {
      const run = details.get(address), points = run?.curves?.[metric];
      if (!points) return [];
      const by = settings.x === "epoch" && run.steps_per_epoch ? run.steps_per_epoch : 1;
      return [{ name: run.name, colour: colour(n), points: by === 1 ? points : points.map(([step, value]) => [step / by, value]) }];
    });
  }

  draw() {
    const metrics = [...new Set(this.addresses.flatMap((address) => Object.keys(details.get(address)?.curves ?? {})))];
    const words = settings.metric.toLowerCase().split(/\s+/);
    const kept = metrics.filter((metric) => words.every((word) => metric.toLowerCase().includes(word)));
    const order = (metric) => (metric === "train/loss" ? 0 : metric.startsWith("probe/") ? 1 : metric.startsWith("train/") ? 2 : 3);
    kept.sort((a, b) => order(a) - order(b) || a.localeCompare(b));
    for (const metric of kept) if (!this.charts.has(metric)) this.charts.set(metric, new Chart(metric));
    const shown = kept.map((metric) => this.charts.get(metric).element);
    if (shown.length !== this.groups.children.length || shown.some((each, n) => each !== this.groups.children[n])) this.groups.replaceChildren(...shown);
    const lines = new Set(this.addresses.map((address) => details.get(address)?.collapsed_at ?? null));
    const line = lines.size === 1 && !lines.has(null) ? [[...lines][0], "collapsed"] : null;
    for (const metric of kept)
      this.charts.get(metric).show(this.curves(metric), { log: settings.log, weight: settings.weight, xName: settings.x, line: metric === "train/loss" ? line : null });
  }

  tell() {
    const known = this.addresses.filter((address) => details.has(address));
    const open = [...this.facts.querySelectorAll("details[open]")].map((each) => each.className);
    const parts = known.length > 1 ? [differences(known)] : known.flatMap(aboutOne);
    this.facts.replaceChildren(...parts);
    for (const each of this.facts.querySelectorAll("details")) each.open = open.includes(each.className);
  }
}

/** Keys whose values are not the same in all runs; what names a run always differs. */
function differences(addresses) {
  const configs = addresses.map((address) => details.get(address).config ?? {});
  const keys = [...new Set(configs.flatMap((config) => Object.keys(config)))].filter((key) => key !== "name" && key !== "run_dir");
  const other = keys.filter((key) => configs.some((config) => config[key] !== configs[0][key]));
  other.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const heading = element("h2", {}, "Keys that differ");
  if (!other.length) return element("section", {}, heading, element("p", { className: "quiet" }, "None but name and folder."));
  const head = addresses.map((address, n) => element("th", { scope: "col" }, element("span", { className: `swatch ${colour(n)}` }), runs.get(address)?.name ?? address));
  const lines = other.map((key) => element("tr", {}, element("th", { scope: "row" }, key), ...configs.map((config) => element("td", {}, config[key] ?? "–"))));
  const table = element("table", { className: "keys" }, element("thead", {}, element("tr", {}, element("th", {}, "key"), ...head)), element("tbody", {}, ...lines));
  return element("section", {}, heading, element("div", { className: "scroll" }, table));
}

function aboutOne(address) {
  const run = details.get(address), parts = [], at = (file) => `/files/${address}/${file.split("/").map(encodeURIComponent).join("/")}`;
  const pages = (run.pages ?? []).map((file) => element("li", {}, element("a", { href: at(file), target: "_blank", rel: "noopener" }, file)));
  if (pages.length) parts.push(element("section", {}, element("h2", {}, "Pages"), element("ul", { className: "pages" }, ...pages)));
  const pictures = (run.pictures ?? []).map((file) => element("figure", {}, element("img", { src: at(file), alt: file, loading: "lazy" }), element("figcaption", { className: "quiet" }, file)));
  if (pictures.length) parts.push(element("section", {}, element("h2", {}, "Pictures"), element("div", { className: "pictures" }, ...pictures)));
  for (const [title, values] of [["Facts of the monitor", run.facts], ["Configuration", run.config]]) {
    const lines = Object.entries(values ?? {}).map(([key, value]) => element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, value)));
    if (!lines.length) continue;
    const table = element("div", { className: "scroll" }, element("table", { className: "keys" }, element("tbody", {}, ...lines)));
    parts.push(element("details", { className: title.split(" ")[0] }, element("summary", {}, title), table));
  }
  return parts;
}

// What is shown follows the address, and the server is asked again and again.

function route() {
  const named = location.hash.startsWith("#runs=") ? location.hash.slice("#runs=".length) : "";
  const addresses = named.split(",").filter(Boolean);
  details.clear();
  view = addresses.length ? new Chosen(addresses) : new List();
  scrollTo(0, 0);
}

const trouble = document.body.appendChild(element("p", { className: "trouble", hidden: true, role: "status" }));

async function ask() {
  try {
    const response = await fetch(`/api/runs?since=${answer.token}`);
    if (!response.ok) throw new Error(response.statusText);
    const got = await response.json();
    const changed = Object.keys(got.runs).length || got.addresses.length !== answer.addresses.length || !answered;
    [answer, answered] = [got, performance.now()];
    for (const address of runs.keys()) if (!got.addresses.includes(address)) runs.delete(address);
    for (const [address, run] of Object.entries(got.runs)) runs.set(address, run);
    trouble.hidden = true;
    if (changed) view.update();
  } catch (error) {
    trouble.textContent = `No answer from the server (${error.message}). What is shown is of ${duration((performance.now() - answered) / 1000)} ago; asking again.`;
    trouble.hidden = false;
  }
  for (const span of document.querySelectorAll(".ago")) tellTime(span);
}

async function watch() {
  if (!document.hidden) await ask();
  setTimeout(watch, EVERY);
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || ask());
route();
watch();
