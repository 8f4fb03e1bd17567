// What was decided, newest first; checks that said no in the same way are one line, or none when the reader wants so.

import { h, render, told } from "./dom.js";
import { count, duration, when, words } from "./format.js";
import { keep, kept } from "./keep.js";
import { Panel, empty } from "./panel.js";
import { gateChip, symbol } from "./symbols.js";

const PAGE = 20;
const HIDDEN = "evergreen-hides-checks";
const OUTCOMES = { promoted: "promotion", rolled_back: "rollback", kept: "refusal", refused: "refusal", not_loaded: "alert", crashed: "alert", failed: "alert", stopped: "alert" };
const KINDS = { adaptation: "adaptation", pause: "pause", resume: "pause", check: "check", retrain: "training", bootstrap: "training", promote: "promotion", rollback: "rollback" };

/** Which shape stands for a run. */
export const shapeOf = ({ kind, state, outcome }) => (state === "failed" ? "alert" : (OUTCOMES[outcome] ?? KINDS[kind] ?? "other"));

function line(decision) {
  const { kind, state, run, first, count: folded, since, from, to, version, trigger, who, why, sentence, chips, check, seconds } = { ...decision, since: decision.from };
  const shape = shapeOf(decision);
  const meta = [
    when(to),
    folded > 1 ? [`${folded} alike since `, when(since, { exact: true }), ` (runs ${first} to ${run})`] : `run ${run}`,
    `${words(kind)}${trigger && trigger !== kind ? `, ${words(trigger)}` : ""}`,
    who && trigger === "manual" ? `by ${who}` : null,
    version !== null ? `version ${version}` : null,
    seconds >= 1 ? `took ${duration(seconds)}` : null,
    check !== null ? h("a", { href: `manage/reports/${check}`, target: "_blank", rel: "noopener", "data-key": `report-${run}` }, "report of its check", h("span", { class: "sr" }, " (new tab)")) : null,
  ];
  return h(
    "li",
    { class: `decision is-${shape}${state === "running" || state === "queued" ? " is-running" : ""}` },
    h("span", { class: "decision-mark" }, symbol(shape, { says: true }), folded > 1 && h("span", { class: "folded" }, `×${folded}`)),
    h(
      "div",
      {},
      h("a", { class: "decision-text", href: `#/runs/${run}`, "data-key": `run-${run}` }, sentence ? told(sentence) : `${words(kind)} ${state}`),
      why && trigger === "manual" && !sentence.includes(why) ? h("p", { class: "why" }, "“", why, "”") : null,
      chips.length > 0 && h("p", { class: "chips" }, chips.map(gateChip)),
      h("p", { class: "meta" }, meta.filter(Boolean).map((one) => h("span", {}, one))),
    ),
  );
}

export function decisionsPanel() {
  const stack = []; // `before` of the pages above the one shown
  let before = null;
  const list = h("ol", { class: "decisions" });
  const none = empty();
  const shown = h("input", { type: "checkbox", checked: kept(HIDDEN) === null, "data-key": "checks", on: { change: () => { keep(HIDDEN, shown.checked ? null : "yes"); stack.length = 0; page(null); } } });
  const choice = h("label", {}, shown, " Show checks that led to nothing");
  const total = h("span", {});
  const newer = h("button", { type: "button", on: { click: () => page(stack.pop() ?? null) } }, "Newer");
  const older = h("button", { type: "button", on: { click: () => { stack.push(before); page(next); } } }, "Older");
  const pager = h("div", { class: "pager" }, total, newer, older);
  let next = null;

  function page(to) {
    before = to;
    panel.load();
  }

  const panel = new Panel({
    id: "decisions",
    title: "Decisions",
    lead: "Newest first. Checks in a row that led to nothing in the same way are one line.",
    topics: ["decisions", "runs"],
    path: () => `page/decisions?limit=${PAGE}${shown.checked ? "" : "&checks=0"}${before === null ? "" : `&before=${before}`}`,
    draw(body, { decisions, before: rest, total: all }) {
      next = rest;
      render(list, decisions.map(line));
      total.textContent = `${count(all, "run")} in the store`;
      newer.disabled = before === null;
      older.disabled = rest === null;
      if (!list.isConnected) render(body, choice, none, list, pager);
      choice.hidden = !all;
      none.hidden = decisions.length > 0;
      none.textContent = all ? "Nothing but checks that led to nothing." : "Nothing was decided yet. The first training, and after it every check, will stand here with its reason.";
      pager.hidden = decisions.length === 0 && before === null;
    },
  });
  return panel;
}
