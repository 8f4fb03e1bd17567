// How it stands, in one sentence, and the few numbers behind it.

import { h, render, told } from "./dom.js";
import { count, duration, fixed, metricName, number, percent, when, words } from "./format.js";
import { Panel, figure } from "./panel.js";
import { stateChip, symbol } from "./symbols.js";

const KINDS = { held: "held", lost: "lost", "not known yet": "unknown" };

function quality(found) {
  if (!found) return figure("Quality", "not known yet", "no check of this version yet");
  const { metric, value, low, high, rows, state, holdout } = found;
  const known = value !== null;
  return figure(
    metricName(metric),
    [known && [fixed(value), " "], stateChip(KINDS[state], state)],
    known
      ? `${low === null ? "" : `${fixed(low)} to ${fixed(high)}, `}${count(rows, "row")}${holdout === null ? "" : `; own holdout ${fixed(holdout)}`}`
      : found.why,
  );
}

function coverage({ coverage: share, delay_s: delay, waiting }) {
  if (share === null) return figure("Labels", "not known yet", "until a check has seen labels");
  return figure(
    "Labels",
    percent(share),
    `of the rows older than ${duration(delay)}${waiting ? `; ${count(waiting, "row")} wait` : ""}`,
  );
}

function adaptation({ adaptation: { state, number: which, weight, since } }) {
  const text = { "in force": `number ${which}`, none: "none in force", off: "switched off", never: "off by setting" }[state];
  const note = {
    "in force": [weight === null ? "" : `${percent(weight)} of the answer, since `, when(since)],
    none: "it answers with its own output",
    off: ["since ", when(since)],
    never: "adaptation is not used here",
  }[state];
  return figure("Adaptation", text, note);
}

const next = ({ next: { what, at } }) => (at === null ? figure("Next", told(what)) : figure("Next", when(at, { due: true }), told(what)));

function attention({ alerts, paused, running, queued, ready, why_not_ready: whyNot }) {
  const said = [];
  if (!ready) said.push(["alert", "A worker is not ready: ", told(whyNot)]);
  if (paused) said.push(["pause", h("a", { href: `#/runs/${paused.run}` }, "The loop is paused"), ` by ${paused.who} `, when(paused.at), paused.why ? `: ${paused.why}` : ""]);
  if (running) said.push(["training", h("a", { href: `#/runs/${running.run}` }, `Run ${running.run}`), ` (${words(running.kind)}, ${running.trigger}) runs since `, when(running.since), queued ? `; ${count(queued, "run")} wait behind it` : ""]);
  for (const { text, kind, run } of alerts) said.push([kind === "doubt" ? "unknown" : "alert", told(text), run ? [" ", h("a", { href: `#/runs/${run}` }, `run ${run}`)] : null]);
  return said.map(([kind, ...text]) => h("li", { class: `is-${kind}` }, symbol(kind, { says: true }), h("span", {}, text)));
}

/** Reads the state, and hands it on to the panels that are drawn from it. */
export function heroPanel(handOn) {
  const panel = new Panel({
    id: "now",
    title: "Now",
    topics: ["state"],
    path: () => "page/state",
    draw(body, state, context) {
      document.title = `${state.alerts.length ? `(${state.alerts.length}) ` : ""}${state.model} · Evergreen`;
      const list = attention(state);
      render(
        body,
        h("p", { class: "over" }, state.model, state.version === null ? null : [" · version ", h("b", {}, number(state.version)), " in service since ", when(state.served_since)]),
        h("h1", { class: "sentence" }, told(state.sentence)),
        h("dl", { class: "figures" }, quality(state.quality), coverage(state), adaptation(state), next(state)),
        list.length > 0 && h("ul", { class: "attention", "aria-label": "What to look at" }, list),
      );
      handOn(state);
    },
  });
  panel.element.classList.add("hero");
  return panel;
}
