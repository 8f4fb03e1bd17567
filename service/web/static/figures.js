// Small drawings as SVG. Positions are shares of the width, so text keeps its size on every screen.

import { h, s } from "./dom.js";
import { compact, fixed, number, percent } from "./format.js";

const at = (share) => `${(share * 100).toFixed(3)}%`;
const drawing = (height, label, children, kind = "") => s("svg", { class: `drawing ${kind}`, width: "100%", height, role: "img", "aria-label": label }, children);
const text = (x, y, words, anchor = "middle", kind = "") => s("text", { x: typeof x === "number" ? at(x) : x, y, "text-anchor": anchor, class: kind }, words);

/** `[low, high]` of what is given, never of no width. */
function extent(values) {
  const known = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const room = (high - low || Math.abs(high) || 1) * 0.1;
  return [low - room, high + room];
}

const STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/** Two sets of counts over the same bins, as shares of their rows: `[{name, kind, counts}]`, kinds `reference`, `window`. */
export function histogram(sets, labels, { label, height = 180, edges = true }) {
  const shares = sets.map(({ counts }) => {
    const all = counts.reduce((sum, one) => sum + one, 0) || 1;
    return counts.map((one) => one / all);
  });
  const top = Math.max(0.0001, ...shares.flat());
  const bins = shares[0].length;
  const floor = height - 22;
  const y = (share) => floor - (share / top) * (floor - 14);
  const parts = [];
  const ticks = [];
  const step = STEPS.find((one) => top / one < 4) ?? 0.5;
  for (let tick = step; tick <= top; tick += step) {
    parts.push(s("line", { x1: 0, x2: "100%", y1: y(tick), y2: y(tick), class: "grid" }));
    ticks.push(s("text", { x: "100%", dx: 6, y: y(tick) + 4, class: "tick" }, percent(tick)));
  }
  sets.forEach(({ kind, name }, index) => {
    const slot = sets.length === 1 ? 0.86 : kind === "reference" ? 0.9 : 0.44;
    shares[index].forEach((share, bin) => {
      const left = (bin + (1 - slot) / 2) / bins;
      parts.push(s("rect", { x: at(left), width: at(slot / bins), y: y(share), height: Math.max(share > 0 ? 1 : 0, floor - y(share)), class: `bar is-${kind}` }, s("title", {}, `${name}, ${edges ? `${labels[bin]} to ${labels[bin + 1]}` : labels[bin]}: ${percent(share)}`)));
    });
  });
  parts.push(s("line", { x1: 0, x2: "100%", y1: floor, y2: floor, class: "axis" }));
  if (edges) {
    const named = new Set([0, 1, 2, 3, 4, 5].map((part) => Math.round((part * bins) / 5)));
    for (const edge of named) {
      parts.push(text(edge / bins, height - 6, labels[edge], edge === 0 ? "start" : edge === bins ? "end" : "middle", "tick"));
    }
  }
  return drawing(height, label, [parts, ticks], "has-scale");
}

/** The same for categories: a row for each, names in words. */
export function categories(sets, names, { label, most = 12 }) {
  const all = sets.map(({ counts }) => counts.reduce((sum, one) => sum + one, 0) || 1);
  const top = Math.max(0.0001, ...sets.flatMap(({ counts }, index) => counts.map((one) => one / all[index])));
  const rows = names.slice(0, most).map((name, bin) =>
    h(
      "div",
      { class: "cat" },
      h("span", { class: "cat-name", title: name }, name),
      s("svg", { class: "drawing", width: "100%", height: 8 * sets.length + 4, "aria-hidden": "true" }, sets.map(({ counts, kind }, index) => s("rect", { x: 0, y: 2 + index * 8, height: 6, rx: 1, width: at(Math.max(0.002, counts[bin] / all[index] / top)), class: `bar is-${kind}` }))),
      h("span", { class: "cat-value" }, sets.map(({ counts, name: said }, index) => h("span", { title: said }, percent(counts[bin] / all[index], true)))),
    ),
  );
  return h("div", { class: "cats", role: "group", "aria-label": label }, rows, names.length > most && h("p", { class: "note" }, `and ${names.length - most} more`));
}

/** What the colours of two sets mean. */
export const setLegend = (sets) =>
  h("ul", { class: "legend" }, sets.map(({ name, kind, note }) => h("li", {}, h("span", { class: `box is-${kind}` }), h("span", {}, name), note && h("b", {}, note))));

/** One bar after another, in time: `[{name, from, to, note}]`. */
export function timeline(phases, label) {
  const [start, end] = [phases[0].from, phases.at(-1).to];
  const whole = end - start || 1;
  return h(
    "div",
    { class: "timeline", role: "group", "aria-label": label },
    phases.map(({ name, from, to, note }) =>
      h(
        "div",
        { class: "phase" },
        h("span", { class: "phase-name" }, name),
        s("svg", { class: "drawing", width: "100%", height: 18, "aria-hidden": "true" }, s("line", { x1: 0, x2: "100%", y1: 9, y2: 9, class: "grid" }), s("rect", { x: at(Math.min(0.995, (from - start) / whole)), width: at(Math.max(0.005, (to - from) / whole)), y: 3, height: 12, rx: 3, class: name === "waiting" ? "bar is-reference" : "bar is-window" })),
        h("span", { class: "phase-note" }, note),
      ),
    ),
  );
}

/** Points on one scale with what is known of them: `[{name, value, error, kind}]`, as 95 % intervals. */
export function points(rows, label, { zero = false } = {}) {
  const [low, high] = extent([...rows.flatMap(({ value, error }) => [value - 1.96 * (error ?? 0), value + 1.96 * (error ?? 0)]), ...(zero ? [0] : [])]);
  const x = (value) => (value - low) / (high - low);
  return h(
    "div",
    { class: "timeline", role: "group", "aria-label": label },
    rows.map(({ name, value, error, kind, note }) =>
      h(
        "div",
        { class: "phase" },
        h("span", { class: "phase-name" }, name),
        s(
          "svg",
          { class: "drawing", width: "100%", height: 22, "aria-hidden": "true" },
          s("line", { x1: 0, x2: "100%", y1: 11, y2: 11, class: "grid" }),
          zero && s("line", { x1: at(x(0)), x2: at(x(0)), y1: 0, y2: 22, class: "axis" }),
          error ? s("line", { x1: at(x(value - 1.96 * error)), x2: at(x(value + 1.96 * error)), y1: 11, y2: 11, class: `whisker is-${kind}` }) : null,
          kind === "reference" ? s("rect", { x: at(x(value)), y: 6, width: 10, height: 10, transform: "translate(-5 0)", class: `dot is-${kind}` }) : s("circle", { cx: at(x(value)), cy: 11, r: 5.5, class: `dot is-${kind}` }),
        ),
        h("span", { class: "phase-note" }, note ?? fixed(value)),
      ),
    ),
  );
}

/** What each trial of a study came to, in order, with the best so far; lower is better. */
export function study(trials, label, height = 200) {
  const [low, high] = extent(trials.map(({ value }) => value));
  const floor = height - 24;
  const y = (value) => 10 + (1 - (value - low) / (high - low)) * (floor - 10);
  const x = (index) => 0.015 + 0.97 * (trials.length < 2 ? 0.5 : index / (trials.length - 1));
  const ticks = [0.1, 0.5, 0.9].map((share) => low + (high - low) * share);
  const parts = ticks.map((value) => s("line", { x1: 0, x2: "100%", y1: y(value), y2: y(value), class: "grid" }));
  let best = Infinity;
  let before = null;
  trials.forEach(({ number: which, value, chosen }, index) => {
    if (value === null) {
      parts.push(text(x(index), floor - 2, "×", "middle", "tick"));
      return;
    }
    best = Math.min(best, value);
    if (before) parts.push(s("line", { x1: at(before.x), x2: at(x(index)), y1: y(before.best), y2: y(before.best), class: "best" }), s("line", { x1: at(x(index)), x2: at(x(index)), y1: y(before.best), y2: y(best), class: "best" }));
    before = { x: x(index), best };
    const title = s("title", {}, `trial ${which}: ${fixed(value, 5)}${chosen ? ", chosen" : ""}`);
    parts.push(s("circle", { cx: at(x(index)), cy: y(value), r: chosen ? 7 : 4, class: chosen ? "dot is-chosen" : "dot is-trial" }, title));
    if (chosen) parts.push(text(x(index), y(value) - 11, "chosen", x(index) > 0.85 ? "end" : x(index) < 0.15 ? "start" : "middle", "tick strong"));
  });
  parts.push(text(0, height - 5, `trial ${number(trials[0].number)}`, "start", "tick"), text(1, height - 5, number(trials.at(-1).number), "end", "tick"));
  const gutter = s("svg", { class: "drawing", width: "100%", height, "aria-hidden": "true" }, ticks.map((value) => text(1, y(value) + 4, fixed(value), "end", "tick")));
  return h("div", { class: "study" }, gutter, drawing(height, label, parts));
}

/** Where a value stands to what it had to reach: the line is the threshold. */
export function bullet(value, threshold, passed) {
  if (value === null || threshold === null) return h("span", { class: "note" }, "–");
  const [low, high] = extent([value, threshold, ...(Math.min(value, threshold) > 0 && Math.min(value, threshold) < Math.max(value, threshold) / 3 ? [0] : [])]);
  const x = (one) => (one - low) / (high - low);
  return s(
    "svg",
    { class: "drawing bullet", width: "100%", height: 18, role: "img", "aria-label": `${compact(value)} against ${compact(threshold)}` },
    s("line", { x1: 0, x2: "100%", y1: 9, y2: 9, class: "grid" }),
    s("line", { x1: at(x(threshold)), x2: at(x(value)), y1: 9, y2: 9, class: `whisker is-${passed ? "held" : "lost"}` }),
    s("line", { x1: at(x(threshold)), x2: at(x(threshold)), y1: 1, y2: 17, class: "axis" }),
    s("circle", { cx: at(x(value)), cy: 9, r: 5, class: `dot is-${passed ? "held" : "lost"}` }),
  );
}

/** Bars to both sides of nothing: `[-1, 1]`, one a row of a table. */
export function swing(value, error, widest) {
  const x = (one) => 0.5 + (Math.max(-1, Math.min(1, one / (widest || 1))) * 0.48);
  return s(
    "svg",
    { class: "drawing", width: "100%", height: 18, "aria-hidden": "true" },
    s("line", { x1: "50%", x2: "50%", y1: 0, y2: 18, class: "axis" }),
    s("rect", { x: at(Math.min(x(value), 0.5)), width: at(Math.abs(x(value) - 0.5)), y: 5, height: 8, rx: 1, class: `bar is-${value < 0 ? "worse" : "better"}` }),
    error ? s("line", { x1: at(x(value - 1.96 * error)), x2: at(x(value + 1.96 * error)), y1: 9, y2: 9, class: "whisker is-error" }) : null,
  );
}
