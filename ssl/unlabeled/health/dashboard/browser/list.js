// The list of all runs: sorted, filtered, and chosen from.

import { element, fits, link, listened, page, picked, plural, runs, search, settings, state, choice, words } from "/parts.js";
import { Table, scoreColumns, scoreOf } from "/table.js";

const live = (run) => Number(["running", "starting", "silent"].includes(run.state));
const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
const falling = (value) => (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity) || 0;
const rising = (value) => (a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity) || 0;
const ORDERS = {
  state: (a, b) => live(b) - live(a) || (live(a) ? 0 : b.updated - a.updated),
  name: byName,
  step: falling((run) => run.step),
  // losses of two methods are not of one kind: methods by name, and losses within each
  loss: (a, b) => (a.method ?? "").localeCompare(b.method ?? "", "en") || rising((run) => run.loss?.last)(a, b),
  probe: falling((run) => run.probes?.[0]?.last),
  speed: falling((run) => run.images_per_second),
  left: rising((run) => run.seconds_left),
};
const WORDS = { state: "running first", name: "by name", loss: "lowest loss, by method", probe: "highest online probe", step: "most steps", speed: "fastest", left: "least time left" };
const order = () => ORDERS[settings.sort] ?? falling((run) => scoreOf(run, settings.sort.slice("score:".length)));

export class List {
  constructor() {
    this.table = new Table((address) => {
      const box = element("input", { type: "checkbox", checked: picked.has(address), ariaLabel: `choose ${runs.get(address).name}` });
      return listened(box, "change", () => (box.checked ? picked.add(address) : picked.delete(address), this.showPicked()));
    }, (key) => ((settings.sort = key), this.update()));
    this.counts = element("p", { className: "headline" });
    this.folder = element("p", { className: "quiet" });
    this.sort = element("label", { className: "sort" });
    this.controls = element("div", { className: "controls" }, search("filter", "filter by name, method, state, tag", "filter runs", () => this.update()), this.sort);
    this.empty = element("p", { className: "empty" });
    this.notes = element("ul", { className: "notes quiet" });
    this.picked = element("div", { className: "picked" });
    page.replaceChildren(element("header", {}, element("h1", {}, "Runs"), this.folder, this.counts),
      this.controls, this.empty, this.table.element, this.notes, this.picked);
    this.update();
  }

  update() {
    const text = (run) => [run.name, run.about ?? "", words(run.state), ...(run.tags ?? []), run.note ?? ""].join(" ");
    const all = [...runs.entries()];
    const kept = all.filter(([, run]) => fits(text(run), settings.filter));
    const before = order();
    kept.sort(([, a], [, b]) => before(a, b) || byName(a, b));
    this.table.show(kept.map(([address]) => address), settings.sort === "loss");
    this.folder.textContent = state.answer.folder;
    const values = all.map(([, run]) => run);
    this.counts.replaceChildren(...(state.answered ? counts(values) : ["reading the runs …"]));
    this.table.element.hidden = !kept.length;
    this.controls.hidden = !all.length;
    this.empty.textContent = kept.length || !state.answered ? "" : all.length
      ? "No run fits the filter." : "No run is here yet. It will appear as soon as one starts: python train.py experiment=digits";
    this.notes.replaceChildren(...state.answer.notes.map((note) => element("li", {}, note)));
    for (const address of picked) if (!runs.has(address)) picked.delete(address);
    this.showPicked();
    this.showSort(values);
    if (state.answered) document.title = `Runs: ${values.filter((run) => run.state === "running").length} of ${all.length} running`;
  }

  /** The select of a phone, where the table has no heads. */
  showSort(values) {
    const scores = scoreColumns(values).map(([protocol, name]) => [`score:${protocol}`, `best ${name}`]);
    const offered = [...Object.entries(WORDS), ...scores], key = JSON.stringify([offered, settings.sort]);
    if (key === this.offered) return;
    this.offered = key;
    this.sort.replaceChildren("sort ", choice("sort", "order", offered, () => this.update()));
  }

  showPicked() {
    const clear = listened(element("button", { type: "button" }, "clear"), "click", () => {
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
  for (const name of [...new Set(all.map((run) => run.state)), "damaged"]) {
    const number = all.filter((run) => (name === "damaged" ? run.problems.length : run.state === name)).length;
    if (number && !parts.includes(`${number} ${words(name)}`)) parts.push(`${number} ${words(name)}`);
  }
  const unread = state.answer.addresses.length - all.length + all.filter((run) => run.reading).length;
  if (unread > 0) parts.push(`${unread} still being read`);
  const alarmed = all.filter((run) => run.findings?.some((finding) => finding.severity === "alarm" && !finding.past)).length;
  return [parts.join(" · "), ...(alarmed ? [element("strong", { className: "wrong" }, ` · ${alarmed} with an alarm`)] : [])];
}
