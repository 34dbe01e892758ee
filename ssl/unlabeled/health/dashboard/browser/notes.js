// The note and the tags of a run, kept in its folder.

import { element, listened, runs } from "/parts.js";

export function notesOf(address) {
  const run = runs.get(address) ?? {};
  const note = element("textarea", { rows: 3, maxLength: 5000, value: run.note ?? "", id: "note" });
  const tags = element("input", { type: "text", value: (run.tags ?? []).join(", "), id: "tags", placeholder: "baseline, paper" });
  const said = element("span", { className: "quiet", role: "status" });
  const save = listened(element("button", { type: "button" }, "save"), "click", async () => {
    const body = JSON.stringify({ note: note.value, tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) });
    try {
      const headers = { "Content-Type": "application/json", "X-Unlabeled": "notes" };
      const answer = await fetch(`/api/notes?of=${address}`, { method: "POST", headers, body });
      said.textContent = answer.ok ? "kept in notes.json of the run's folder" : `not kept: ${await answer.text()}`;
    } catch (error) {
      said.textContent = `not kept: ${error.message}`;
    }
  });
  for (const field of [note, tags]) listened(field, "input", () => (said.textContent = "not kept yet"));
  const label = (of, words) => element("label", { htmlFor: of }, words);
  return element("details", { className: "own", open: Boolean(run.note || run.tags?.length) },
    element("summary", {}, "Note and tags"), label("note", "note"), note, label("tags", "tags, with commas between"), tags, element("p", {}, save, " ", said));
}
