// What the views share: the runs as the server last told of them, settings, and small pieces of a page.

const WORDS = { silent: "no sign of life", interrupted: "stopped" };
export const words = (state) => WORDS[state] ?? state;
export const page = document.getElementById("page");
export const runs = new Map(); // address → what the server says of a run
export const details = new Map(); // address → the same of a chosen run, with everything
export const picked = new Set();
export const settings = { filter: "", sort: "state", metric: "", x: "step", log: false, weight: 0 };
// answered: when, on this machine's clock
export const state = { answer: { token: "", now: Date.now() / 1000, notes: [], folder: "", addresses: [] }, answered: 0, view: null };
export const narrow = () => matchMedia("(max-width: 860px)").matches;

/** An element; `children` are elements or texts, never HTML. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export function listened(made, kind, told) {
  made.addEventListener(kind, () => told(made));
  return made;
}

export const count = (value) => Math.round(value).toLocaleString("en");
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
export const link = (addresses) => `#runs=${addresses.join(",")}`;

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** A time ago, which `tellTime` keeps right. */
export function ago(time, before, after) {
  const span = element("span", { className: "ago" });
  Object.assign(span.dataset, { time, before, after });
  tellTime(span);
  return span;
}

export function tellTime(span) {
  const now = state.answer.now + (state.answered ? (performance.now() - state.answered) / 1000 : 0);
  span.textContent = `${span.dataset.before}${duration(now - span.dataset.time).replace(/(\d (h|d)) .*/, "$1")}${span.dataset.after}`;
}

/** A select for one of the settings; `values` are pairs of a value and its words. */
export function choice(name, label, values, changed) {
  const options = values.map(([value, words]) => element("option", { value, selected: value === settings[name] }, words));
  return listened(element("select", { ariaLabel: label }, ...options), "change", (made) => ((settings[name] = made.value), changed()));
}

export function search(name, placeholder, label, changed) {
  const made = element("input", { type: "search", placeholder, value: settings[name], ariaLabel: label });
  return listened(made, "input", () => ((settings[name] = made.value), changed()));
}

/** Whether a text has every word that was typed. */
export const fits = (text, typed) => typed.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
