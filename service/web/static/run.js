// One run's story: what was asked, how long each part took, what the gates found, what it learnt from.

import { h, render, told } from "./dom.js";
import { shapeOf } from "./decisions.js";
import { bullet, points, study, timeline } from "./figures.js";
import { count, digest, duration, fixed, measured, metricName, number, percent, signed, when, words } from "./format.js";
import { Panel, figure } from "./panel.js";
import { stateChip, symbol } from "./symbols.js";

const part = (title, ...children) => h("section", { class: "part" }, h("h2", {}, title), children);
const newTab = h("span", { class: "sr" }, " (new tab)");

function target({ kind, run, version, other, check }) {
  if (kind === "run") return { href: `#/runs/${run}` };
  if (kind === "versions") return { href: `#/versions/${version}/${other}` };
  if (kind === "report") return { href: `manage/reports/${check}`, target: "_blank", rel: "noopener" };
  if (kind === "check") return { href: "#/drift" };
  return version > 1 ? { href: `#/versions/${version - 1}/${version}` } : null;
}

function link(one) {
  const to = target(one);
  return h("li", {}, to ? h("a", to, one.text, to.target && newTab.cloneNode(true)) : one.text);
}

function gates(chips) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Gates" },
    h(
      "table",
      { class: "rows gates" },
      h("thead", {}, h("tr", {}, ["Gate", "Verdict", "Value", "Had to reach", "", "What it found"].map((head, index) => h("th", { scope: "col", class: index === 2 || index === 3 ? "n" : index === 4 ? "wide" : "" }, head || h("span", { class: "sr" }, "Drawn"))))),
      h("tbody", {}, chips.map(({ gate, passed, text, value, threshold }) =>
        h("tr", {}, h("th", { scope: "row" }, words(gate)), h("td", { class: "verdict" }, stateChip(passed ? "held" : "refusal", passed ? "passed" : "failed")), h("td", { class: "n" }, number(value)), h("td", { class: "n" }, number(threshold)), h("td", { class: "wide" }, bullet(value, threshold, passed)), h("td", { class: "text" }, told(text))))),
    ),
  );
}

function compared({ metric, challenger, champion, error, rows, metrics }) {
  const both = [
    challenger !== null && { name: "challenger", value: challenger, kind: "window" },
    champion !== null && { name: "champion", value: champion, kind: "reference" },
  ].filter(Boolean);
  const difference = challenger !== null && champion !== null ? challenger - champion : null;
  const others = Object.entries(metrics).filter(([name]) => name !== metric);
  return [
    h("p", { class: "chart-note" }, `${metricName(metric)} on the same ${count(rows, "row")} that neither was trained on.`),
    both.length > 0 && points(both, `${metricName(metric)} of challenger and champion`),
    difference !== null && points([{ name: "difference", value: difference, error, kind: "window", note: `${signed(difference)}${error === null ? "" : ` ± ${fixed(1.96 * error)}`}` }], "Difference, challenger minus champion, with 95%", { zero: true }),
    others.length > 0 && h("dl", { class: "pairs" }, others.map(([name, value]) => h("div", {}, h("dt", {}, metricName(name)), h("dd", {}, measured(value))))),
  ];
}

function trials(tried) {
  const list = tried.map((one) => ({ ...one, value: one.value === null ? null : -one.value })); // The negative loss was maximised.
  const chosen = list.find((one) => one.chosen);
  const names = [...new Set(list.flatMap(({ parameters }) => Object.keys(parameters)))];
  const said = (value) => (typeof value === "number" ? number(value) : value === undefined ? "–" : String(value));
  return [
    h("p", { class: "chart-note" }, `Loss of ${count(list.length, "trial")}, lower is better. The line is the best so far.`),
    study(list, `Loss of ${count(list.length, "trial")}${chosen ? `; trial ${chosen.number} was chosen with ${fixed(chosen.value, 4)}` : ""}`),
    h("details", { class: "as-table", "data-key": "trials" }, h("summary", {}, "Table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Trials" }, h("table", { class: "rows" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Trial"), h("th", { scope: "col", class: "n" }, "Loss"), names.map((name) => h("th", { scope: "col", class: "n" }, words(name))))), h("tbody", {}, list.map(({ number: which, value, parameters, chosen: best }) => h("tr", {}, h("th", { scope: "row" }, number(which), best && h("span", { class: "tag" }, "chosen")), h("td", { class: "n" }, value === null ? "given up" : fixed(value, 4)), names.map((name) => h("td", { class: "n" }, said(parameters[name]))))))))),
  ];
}

function judged(list) {
  const all = list.reduce((sum, { rows }) => sum + rows, 0) || 1;
  return h(
    "div",
    { class: "stack", role: "img", "aria-label": list.map(({ use, rows }) => `${use} ${number(rows)} rows`).join(", ") },
    list.map(({ use, rows }) => h("span", { class: `stack-part is-${use}`, style: { "flex-grow": String(Math.max(rows / all, 0.04)) } }, h("b", {}, use), ` ${count(rows, "row")}`)),
  );
}

function learnt({ data, windows, judged: rows, unfit_rows: unfit }) {
  return [
    data && h("dl", { class: "pairs" },
      h("div", {}, h("dt", {}, "rows"), h("dd", {}, number(data.rows))),
      h("div", {}, h("dt", {}, "of the record"), h("dd", {}, number(data.record_rows), data.rows ? ` (${percent(data.record_rows / data.rows)})` : "")),
      data.from !== null && h("div", {}, h("dt", {}, "from"), h("dd", {}, when(data.from, { exact: true }))),
      data.until !== null && h("div", {}, h("dt", {}, "until"), h("dd", {}, when(data.until, { exact: true }))),
      unfit > 0 && h("div", {}, h("dt", {}, "left out, unfit"), h("dd", {}, number(unfit))),
      h("div", {}, h("dt", {}, "snapshot"), h("dd", {}, digest(data.snapshot)))),
    rows.length > 0 && judged(rows),
    windows.length > 0 && [
      h("h3", {}, "Which rows to learn from"),
      h("table", { class: "rows tight" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Window"), h("th", { scope: "col", class: "n" }, "Rows"), h("th", { scope: "col", class: "n" }, "Better than all by"))), h("tbody", {}, windows.map(({ name, rows: n, sigmas, chosen }) => h("tr", {}, h("th", { scope: "row" }, words(name), chosen && h("span", { class: "tag" }, "chosen")), h("td", { class: "n" }, number(n)), h("td", { class: "n" }, sigmas === null ? "not compared" : `${signed(sigmas, 1)} σ`))))),
    ],
  ];
}

function draw(body, story) {
  const { id, kind, state, outcome, trigger, who, why, sentence, created_at: created, started_at: started, finished_at: ended, version, error, stderr, notes, decision, due, phases, gates: chips, passed, quality, trials: tried, data, judged: rows, links, record, newer, older, rollout } = story;
  const shape = shapeOf(story);
  document.title = `Run ${id} · Evergreen`;
  render(
    body,
    h("nav", { class: "crumbs", "aria-label": "Runs" }, h("a", { href: "#/decisions", "data-key": "back" }, "← Decisions"), h("span", {}, older !== null && h("a", { href: `#/runs/${older}`, "data-key": "older" }, `Run ${older}`), newer !== null && h("a", { href: `#/runs/${newer}`, "data-key": "newer" }, `Run ${newer} →`))),
    h("p", { class: "over" }, symbol(shape, { says: true }), ` Run ${id} · ${words(kind)}${version === null ? "" : ` · version ${version}`}`),
    h("h1", { class: "sentence" }, sentence ? told(sentence) : `${words(kind)}: ${words(outcome ?? state)}`),
    h("dl", { class: "figures" },
      figure("Outcome", words(outcome ?? state), passed === null ? null : passed ? "every gate passed" : "a gate refused it"),
      figure("Asked for", when(created), [words(trigger), who && trigger === "manual" ? `, by ${who}` : ""]),
      figure("Took", started !== null && ended !== null ? duration(ended - started) : state === "running" ? ["since ", when(started)] : "–", ended === null ? null : ["ended ", when(ended)]),
      due !== null && figure("Had to be", due ? "not worse" : "better", due ? "it was due: promoted unless probably worse" : "promoted only if probably better")),
    (why || decision.length > 0) && part("Why", why && !decision.some((reason) => why.includes(reason)) && h("p", {}, why), decision.length > 0 && h("ul", { class: "plain" }, decision.map((reason) => h("li", {}, told(reason))))),
    error && part("What went wrong", h("p", { class: "trouble" }, told(error)), stderr && h("details", { "data-key": "stderr" }, h("summary", {}, "What the job wrote"), h("pre", { tabindex: "0" }, stderr))),
    phases.length > 1 && part("How long it took", timeline(phases.map((phase) => ({ ...phase, note: duration(phase.seconds) })), `Phases: ${phases.map(({ name, seconds }) => `${name} ${duration(seconds)}`).join(", ")}`)),
    chips.length > 0 && part("Gates", gates(chips)),
    quality && part("Challenger and champion", compared(quality)),
    tried.length > 0 && part("Study", trials(tried)),
    (data || rows.length > 0 || story.windows.length > 0) && part("Data", learnt(story)),
    notes.length > 0 && part("Notes", h("ul", { class: "plain" }, notes.map((note) => h("li", {}, told(note))))),
    links.length > 0 && part("See also", h("ul", { class: "plain links" }, links.map(link))),
    part("Record", rollout && h("details", { "data-key": "rollout" }, h("summary", {}, "Rollout"), h("pre", { tabindex: "0" }, JSON.stringify(rollout, null, 2))), h("details", { "data-key": "record" }, h("summary", {}, "Everything that is stored of this run"), h("pre", { tabindex: "0" }, JSON.stringify(record, null, 2)))),
  );
}

/** A view of one panel, read again when one of its topics changes. */
export function single(main, jump, { title, topics, path, draw: paint }) {
  const panel = new Panel({ id: "story", title, topics, path: () => path, draw: paint });
  panel.element.classList.add("story");
  jump.hidden = true;
  render(main, panel.element);
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
  panel.load();
  return {
    changed(changed) {
      if (changed === null || topics.some((topic) => changed.has(topic))) panel.load();
    },
    close() {
      panel.leave();
    },
  };
}

export const run = (main, jump, [id]) => single(main, jump, { title: `Run ${id}`, topics: ["runs", "decisions"], path: `page/runs/${id}`, draw });
