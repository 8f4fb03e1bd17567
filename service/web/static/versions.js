// Two versions side by side: parameters, data, gates, slices, importance.

import { h, render, s } from "./dom.js";
import { digest, fixed, measured, metricName, number, percent, signed, when, words } from "./format.js";
import { single } from "./run.js";
import { gateChip } from "./symbols.js";

const part = (title, ...children) => h("section", { class: "part" }, h("h2", {}, title), children);

function said(value, name) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return /^(from|since|until)/.test(name) ? when(value, { exact: true }) : number(value, 4);
  if (/^[0-9a-f]{32,}$/.test(value)) return digest(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function sideBySide(a, b, rows, note = null, write = said) {
  if (!rows.length) return h("p", { class: "empty small" }, "Nothing is known of both.");
  const same = rows.filter(({ differs }) => !differs);
  const table = (list) =>
    h("table", { class: "rows pair" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "sr" }, "Name")), h("th", { scope: "col" }, `Version ${a}`), h("th", { scope: "col" }, `Version ${b}`))),
      h("tbody", {}, list.map(({ name, a: one, b: other, differs }) => h("tr", { class: differs ? "differs" : "" }, h("th", { scope: "row" }, differs && h("span", { class: "differs-mark", title: "differs" }, "≠ "), metricName(name)), h("td", {}, write(one, name)), h("td", {}, write(other, name))))));
  const different = rows.filter(({ differs }) => differs);
  return [
    note && h("p", { class: "chart-note" }, note),
    different.length ? table(different) : h("p", { class: "empty small" }, "No difference."),
    same.length > 0 && h("details", { "data-key": `same-${rows[0].name}` }, h("summary", {}, `${same.length} the same`), table(same)),
  ];
}

/** Two values on one scale, with a line between them: `■` the first, `●` the second. */
function dumbbell(a, b, widest, least = 0) {
  const x = (value) => `${(1 + ((value - least) / (widest - least || 1)) * 97).toFixed(2)}%`;
  return s("svg", { class: "drawing", width: "100%", height: 16, "aria-hidden": "true" },
    s("line", { x1: 0, x2: "100%", y1: 8, y2: 8, class: "grid" }),
    a !== null && b !== null ? s("line", { x1: x(a), x2: x(b), y1: 8, y2: 8, class: "whisker is-error" }) : null,
    a === null ? null : s("rect", { x: x(a), y: 3.5, width: 9, height: 9, transform: "translate(-4.5 0)", class: "dot is-reference" }),
    b === null ? null : s("circle", { cx: x(b), cy: 8, r: 5, class: "dot is-window" }));
}

const keyOf = (a, b) => h("ul", { class: "legend" }, h("li", {}, h("span", { class: "box is-dot" }), h("span", {}, `version ${a}`)), h("li", {}, h("span", { class: "box is-window round" }), h("span", {}, `version ${b}`)));

function lines(a, b, rows, head, format, change) {
  const values = rows.flatMap(({ a: one, b: other }) => [one, other]).filter((value) => value !== null);
  const [least, widest] = [Math.min(0, ...values), Math.max(0, ...values)];
  const low = head === "Slice" ? Math.min(...values) : least;
  return [
    keyOf(a, b),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head },
      h("table", { class: "rows" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, head), h("th", { scope: "col", class: "n" }, `v${a}`), h("th", { scope: "col", class: "n" }, `v${b}`), h("th", { scope: "col", class: "n" }, "Change"), h("th", { scope: "col", class: "wide" }, h("span", { class: "sr" }, "Drawn")))),
        h("tbody", {}, rows.map(({ name, feature, sensitive, a: one, b: other }) =>
          h("tr", {}, h("th", { scope: "row" }, name ?? feature, sensitive && h("span", { class: "tag" }, "sensitive")), h("td", { class: "n" }, format(one)), h("td", { class: "n" }, format(other)), h("td", { class: "n" }, one === null || other === null ? "–" : change(other - one)), h("td", { class: "wide" }, dumbbell(one, other, widest, low))))))),
  ];
}

function card({ version, created_at: created, origin, estimator, engine, seed, reproducible, passed, metric, value, error, rows, gates, run, notes, tags }) {
  return h("section", { class: "side", "aria-label": `Version ${version}` },
    h("h2", {}, `Version ${version}`, tags.map((tag) => h("span", { class: "tag" }, tag))),
    h("p", { class: "big" }, fixed(value), h("small", {}, ` ${metricName(metric)}${error === null ? "" : ` ± ${fixed(1.96 * error)}`}`)),
    h("p", { class: "meta" }, h("span", {}, `on ${number(rows)} holdout rows`), h("span", {}, words(origin)), estimator && h("span", {}, estimator), h("span", {}, engine), h("span", {}, `seed ${seed}${reproducible ? "" : ", not reproducible"}`)),
    h("p", { class: "chips" }, gates.map(({ name, passed: held, reason }) => gateChip({ gate: name, passed: held, text: reason })), passed === null && h("span", { class: "note" }, "the gates were not asked")),
    h("p", { class: "meta" }, h("span", {}, "made ", when(created)), run !== null && h("span", {}, h("a", { href: `#/runs/${run}` }, `run ${run}`))),
    notes.length > 0 && h("ul", { class: "plain" }, notes.map((note) => h("li", {}, note))));
}

function draw(body, { a, b, parameters, data, libraries, metrics, importance, slices, slice_metric: metric }) {
  const [one, other] = [a.version, b.version];
  document.title = `Versions ${one} and ${other} · Evergreen`;
  render(
    body,
    h("nav", { class: "crumbs", "aria-label": "Versions" }, h("a", { href: "#/fleet", "data-key": "back" }, "← Overview"), h("span", {}, h("a", { href: `#/versions/${other}/${one}`, "data-key": "swap" }, "Swap sides"))),
    h("h1", { class: "sentence" }, `Version ${one} beside version ${other}`),
    h("div", { class: "sides" }, card(a), card(b)),
    part("Parameters", sideBySide(one, other, parameters)),
    part("Data", sideBySide(one, other, data)),
    part("Metrics", sideBySide(one, other, metrics, "Each on its own holdout: other rows, so they are only roughly comparable.", measured)),
    part("Feature importance", importance.length ? lines(one, other, importance, "Feature", (value) => percent(value, true), (value) => `${signed(value * 100, 1)} pp`) : h("p", { class: "empty small" }, "Not measured.")),
    part("Slices", slices.length ? [h("p", { class: "chart-note" }, `${metricName(metric)}, larger is better; each version on the matured rows that it answered itself.`), lines(one, other, slices, "Slice", fixed, signed)] : h("p", { class: "empty small" }, "Not known yet: slices appear once both versions have answered rows whose labels came.")),
    part("Libraries", sideBySide(one, other, libraries)),
  );
}

export const versions = (main, jump, [a, b]) => single(main, jump, { title: `Versions ${a} and ${b}`, topics: ["versions"], path: `page/versions/${a}/${b}`, draw });
