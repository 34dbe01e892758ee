// A table of runs: a line of numbers for each, and below it what there is to say.

import { short, sparkline } from "/charts.js";
import { ago, count, duration, element, link, listened, runs, settings, words } from "/parts.js";

const SCORES = 4; // columns of final scores
const PROBES = { "probe/knn_top1": "k-NN", "probe/linear_top1": "linear" };
const HEADS = [["", ""], ["name", "run"], ["state", "state"], ["step", "step"], ["loss", "loss"], ["probe", "online probe"]];
const TAIL = [["speed", "images/s"], ["left", "time left"]];
const percent = (value) => value.toFixed(1);

/** The protocols that most runs have, with short names that differ. */
export function scoreColumns(all) {
  const found = new Map();
  for (const run of all) for (const [protocol, name] of run.scores ?? []) found.set(protocol, [name, (found.get(protocol)?.[1] ?? 0) + 1]);
  const most = [...found].sort((a, b) => b[1][1] - a[1][1]).slice(0, SCORES);
  const same = (name) => most.filter(([, [other]]) => other === name).length > 1;
  return most.map(([protocol, [name]]) => [protocol, same(name) ? `${name} ${protocol.split("/").slice(-1)[0]}` : name]);
}

export const scoreOf = (run, protocol) => run.scores?.find(([known]) => known === protocol)?.[2];

/** Rows are made anew only where a run has changed. */
export class Table {
  constructor(markOf, sorted) {
    this.markOf = markOf;
    this.sorted = sorted; // what to do when a head is clicked; none: heads are plain
    this.rows = new Map(); // address → [content, tbody]
    this.heads = new Map(); // method → tbody
    this.columns = [];
    this.head = element("tr");
    this.element = element("table", { className: "runs" }, element("thead", {}, this.head));
  }

  /** `heads`: whether a line names the method where it changes. */
  show(addresses, heads = false) {
    const columns = scoreColumns(addresses.map((address) => runs.get(address)));
    if (!this.head.children.length || JSON.stringify(columns) !== JSON.stringify(this.columns)) this.rows.clear();
    this.columns = columns;
    this.showHead();
    for (const address of this.rows.keys()) if (!addresses.includes(address)) this.rows.delete(address);
    const bodies = [];
    addresses.forEach((address, n) => {
      const method = runs.get(address).method ?? "";
      if (heads && (!n || method !== (runs.get(addresses[n - 1]).method ?? ""))) bodies.push(this.headOf(method));
      bodies.push(this.body(address, n));
    });
    const shown = [...this.element.tBodies];
    if (bodies.length !== shown.length || bodies.some((body, n) => body !== shown[n])) this.element.replaceChildren(this.element.tHead, ...bodies);
    this.markBest(addresses);
  }

  body(address, n) {
    const run = runs.get(address), [content, old] = this.rows.get(address) ?? [];
    if (content === run) return old;
    const made = row(address, run, old ? null : this.markOf(address, n), this.columns);
    if (old) renew(old, made);
    this.rows.set(address, [run, old ?? made]);
    return old ?? made;
  }

  headOf(method) {
    const text = [method || "unknown method", element("small", {}, "a loss is compared within its method only")];
    if (!this.heads.has(method)) this.heads.set(method, element("tbody", { className: "method" }, element("tr", {}, element("th", { colSpan: 99, scope: "rowgroup" }, ...text))));
    return this.heads.get(method);
  }

  showHead() {
    const all = [...HEADS, ...this.columns.map(([protocol, name]) => [`score:${protocol}`, name, protocol]), ...TAIL];
    const cells = all.map(([key, name, title]) => {
      const chosen = this.sorted && settings.sort === key;
      const inside = this.sorted && name ? listened(element("button", { type: "button" }, name), "click", () => this.sorted(key)) : name;
      const cell = element(name ? "th" : "td", { ...(name ? { scope: "col" } : {}), title: title ?? "", className: title ? "score" : key }, inside);
      if (chosen) cell.ariaSort = ["name", "loss", "left", "state"].includes(key) ? "ascending" : "descending";
      return cell;
    });
    const focused = [...this.head.children].findIndex((cell) => cell.contains(document.activeElement));
    this.head.replaceChildren(...cells);
    if (focused >= 0) this.head.children[focused]?.firstChild?.focus?.();
  }

  /** The highest score of each column, among runs on the same data. */
  markBest(addresses) {
    const best = {}, of = (run, protocol) => `${run.data || run.name} ${protocol}`, all = addresses.map((address) => runs.get(address));
    for (const run of all) for (const [protocol, , value] of run.scores ?? []) best[of(run, protocol)] = Math.max(value, best[of(run, protocol)] ?? 0);
    addresses.forEach((address, n) => {
      for (const cell of this.rows.get(address)[1].querySelectorAll("td.score"))
        cell.classList.toggle("best", all.length > 1 && scoreOf(all[n], cell.dataset.protocol) === (best[of(all[n], cell.dataset.protocol)] ?? NaN));
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

function row(address, run, mark, columns) {
  const about = element("small", {}, run.about ?? "", ...report(address, run));
  const tags = (run.tags ?? []).map((tag) => element("span", { className: "tag" }, tag));
  const note = run.note ? element("small", { className: "note-line" }, run.note.split("\n")[0].slice(0, 120)) : null;
  const scores = columns.map(([protocol, name]) => {
    const value = scoreOf(run, protocol);
    const made = cell("score", name, [value === undefined ? "–" : percent(value)]);
    made.dataset.protocol = protocol;
    return made;
  });
  const line = element("tr", { className: "numbers" },
    element("td", { className: "mark" }, mark),
    element("th", { className: "name", scope: "row" }, element("a", { href: link([address]) }, run.name), about, ...tags, note),
    element("td", { className: "state" }, element("span", { className: `badge ${run.state}` }, words(run.state)), element("small", {}, when(run))),
    element("td", { className: "progress" }, ...progress(run)),
    cell("loss", "loss", curveOf(run.loss, "loss", run, short)),
    cell("probe", `online ${PROBES[run.probes?.[0]?.name] ?? "probe"}`, curveOf(run.probes?.[0], "online probe", run, percent)),
    ...scores,
    cell("speed", "images/s", [run.images_per_second ? count(run.images_per_second) : "–"]),
    cell("left", "time left", [typeof run.seconds_left === "number" ? duration(run.seconds_left) : "–"]));
  return element("tbody", { className: `run is-${run.state}` }, line, sentences(run));
}

function report(address, run) {
  if (!run.report) return [];
  return [run.about ? " · " : "", element("a", { href: `/files/${address}/report/report.html`, target: "_blank", rel: "noopener" }, "report")];
}

function cell(name, label, children) {
  const made = element("td", { className: `${name} value${children[0] === "–" ? " none" : ""}` }, ...children);
  made.dataset.label = label;
  return made;
}

function when(run) {
  if (!run.updated) return "";
  if (run.state === "running") return run.started ? ago(run.started, "for ", "") : "";
  return run.state === "silent" ? ago(run.updated, "for ", "") : ago(run.updated, "", " ago");
}

function progress(run) {
  if (run.step === undefined) return [];
  const bar = element("div", { className: "bar" }, element("div", { className: "done" }));
  bar.firstChild.style.width = `${run.total ? Math.min(100, (100 * run.step) / run.total) : 0}%`;
  return [bar, element("span", { className: "steps" }, run.total ? `${count(run.step)} of ${count(run.total)}` : `step ${count(run.step)}`)];
}

/** First and last value, and the curve between them, in one line. */
function curveOf(curve, label, run, text) {
  if (!curve?.any) return ["–"];
  const last = curve.last === null ? element("strong", { className: "wrong" }, "not finite") : text(curve.last);
  const first = typeof curve.first === "number" && curve.points.length > 1 ? `${text(curve.first)} → ` : "";
  return [sparkline([curve.points], label, run.total), element("span", { className: "ends" }, first, element("span", { className: "last" }, last))];
}

function sentences(run) {
  const said = [];
  if (run.sentence) said.push(["", run.sentence]);
  for (const problem of run.problems ?? []) said.push(["damaged", problem]);
  for (const finding of run.findings ?? []) said.push([finding.past ? "past" : finding.severity, finding.sentence]);
  for (const doubt of run.doubts ?? []) said.push(["plan", doubt]);
  const items = said.map(([kind, text]) => element("li", { className: kind }, kind && element("b", {}, kind), text));
  const held = element("td", { colSpan: 99 }, element("ul", {}, ...items));
  return element("tr", { className: "said", hidden: !said.length }, element("td"), held);
}
