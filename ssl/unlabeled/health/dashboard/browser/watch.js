// What is shown follows the address, and the server is asked again and again. All that runs wrote is set as text.

import { Chosen } from "/chosen.js";
import { List } from "/list.js";
import { details, duration, element, runs, state, tellTime } from "/parts.js";

const EVERY = 2000; // milliseconds between two questions

function route() {
  const named = location.hash.startsWith("#runs=") ? location.hash.slice("#runs=".length) : "";
  const addresses = named.split(",").filter(Boolean);
  details.clear();
  state.view = addresses.length ? new Chosen(addresses) : new List();
  scrollTo(0, 0);
}

const trouble = document.body.appendChild(element("p", { className: "trouble", hidden: true, role: "status" }));

async function ask() {
  try {
    const response = await fetch(`/api/runs?since=${state.answer.token}`);
    if (!response.ok) throw new Error(response.statusText);
    const got = await response.json();
    const changed = Object.keys(got.runs).length || got.addresses.length !== state.answer.addresses.length || !state.answered;
    [state.answer, state.answered] = [got, performance.now()];
    const there = new Set(got.addresses);
    for (const address of runs.keys()) if (!there.has(address)) runs.delete(address);
    for (const [address, run] of Object.entries(got.runs)) runs.set(address, run);
    trouble.hidden = true;
    if (changed) state.view.update();
  } catch (error) {
    trouble.textContent = `No answer from the server (${error.message}). Shown is the state of ${duration((performance.now() - state.answered) / 1000)} ago; asking again.`;
    trouble.hidden = false;
  }
  for (const span of document.querySelectorAll(".ago")) tellTime(span);
}

async function watch() {
  if (!document.hidden) await ask();
  setTimeout(watch, runs.size < state.answer.addresses.length ? 0 : EVERY); // of many runs the first answer has some
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => document.hidden || ask());
route();
watch();
