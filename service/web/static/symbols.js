// What happened, as a shape, a word and a colour: never as a colour alone.

import { h, s } from "./dom.js";

// Paths in a box of 16 × 16.
const SHAPES = {
  training: ["Training", "M8 2.2 14.2 13H1.8z"],
  promotion: ["Promotion", "M8 1.5l1.9 4.1 4.5.5-3.3 3 .9 4.4L8 11.3l-4 2.2.9-4.4-3.3-3 4.5-.5z"],
  refusal: ["Refusal", "M3.6 2.2 8 6.6l4.4-4.4 1.4 1.4L9.4 8l4.4 4.4-1.4 1.4L8 9.4l-4.4 4.4-1.4-1.4L6.6 8 2.2 3.6z"],
  rollback: ["Rollback", "M7 2 1.8 6.5 7 11V8.2c3.4 0 5.2 1.6 6.6 4.8.5-4.6-2-8-6.6-8.3z"],
  adaptation: ["Adaptation", "M8 1.4 14.6 8 8 14.6 1.4 8z"],
  alert: ["Alert", "M6.7 1.8h2.6l-.4 8H7.1zM8 11.3a1.6 1.6 0 1 1 0 3.2 1.6 1.6 0 0 1 0-3.2z"],
  pause: ["Pause", "M3.5 2.5h3.4v11H3.5zM9.1 2.5h3.4v11H9.1z"],
  check: ["Check", "M8 3.2a4.8 4.8 0 1 1 0 9.6 4.8 4.8 0 0 1 0-9.6zm0 1.7a3.1 3.1 0 1 0 0 6.2 3.1 3.1 0 0 0 0-6.2z"],
  other: ["Run", "M3.2 3.2h9.6v9.6H3.2z"],
  held: ["Held", "M6.4 13 1.9 8.5l1.5-1.5 3 3 6.2-6.4 1.5 1.5z"],
  lost: ["Lost", "M8 14 2 5.6h3.6V2h4.8v3.6H14z"],
  unknown: ["Not known yet", "M8 1.8c2.4 0 4 1.4 4 3.4 0 1.5-.8 2.3-1.9 3-.9.6-1.1.9-1.1 1.6v.4H7v-.6c0-1.4.6-2 1.6-2.7.9-.6 1.3-1 1.3-1.7 0-.9-.7-1.5-1.9-1.5S6 4.5 5.9 5.6H4C4.1 3.3 5.6 1.8 8 1.8zM8 11.6a1.4 1.4 0 1 1 0 2.8 1.4 1.4 0 0 1 0-2.8z"],
};

const of = (kind) => SHAPES[kind] ?? SHAPES.other;

export const nameOf = (kind) => of(kind)[0];

/** The shape of a kind; `says` adds its name for those who do not see it. */
export function symbol(kind, { says = false } = {}) {
  const [name, path] = of(kind);
  const known = kind in SHAPES ? kind : "other";
  return s("svg", { class: `symbol is-${known}`, viewBox: "0 0 16 16", ...(says ? { role: "img", "aria-label": name } : { "aria-hidden": "true" }) }, s("path", { d: path }));
}

/** A gate's verdict: mark, name, and its sentence in the title. */
export function gateChip({ gate, passed, text }) {
  const kind = passed === null || passed === undefined ? "unknown" : passed ? "held" : "refusal";
  const says = passed === null || passed === undefined ? "not judged" : passed ? "passed" : "failed";
  return h("span", { class: `chip is-${kind}`, title: text || says }, symbol(kind), h("span", {}, String(gate).replaceAll("_", " ")), h("span", { class: "sr" }, ` ${says}`));
}

/** A state in words with its mark. */
export const stateChip = (kind, text) => h("span", { class: `chip is-${kind}` }, symbol(kind), h("span", {}, text));
