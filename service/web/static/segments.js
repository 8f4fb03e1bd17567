// For whom is it worse? The worst slices of the newest check that looked, and every sensitive group.

import { h, render } from "./dom.js";
import { swing } from "./figures.js";
import { count, fixed, metricName, number, signed, when } from "./format.js";
import { Panel, empty } from "./panel.js";

const row = (slice, widest) =>
  h(
    "tr",
    {},
    h("th", { scope: "row" }, slice.name, slice.sensitive && h("span", { class: "tag", title: "A sensitive feature: always shown" }, "sensitive")),
    h("td", { class: "n" }, number(slice.rows)),
    h("td", { class: "n spare" }, fixed(slice.value)),
    h("td", { class: "n" }, signed(slice.difference)),
    h("td", { class: "wide" }, swing(slice.difference, slice.error, widest)),
  );

export const segmentsPanel = () =>
  new Panel({
    id: "slices",
    title: "Slices",
    lead: "The groups of rows with the worst quality, and every sensitive group.",
    topics: ["segments"],
    path: () => "page/segments",
    draw(body, { check, at, metric, value, rows, slices, note }) {
      if (!slices.length) {
        render(body, empty(check === null ? "Not known yet: slices appear with the first check that has enough matured rows with labels" : "Nothing to show", note ? ` (${note}).` : "."));
        return;
      }
      const widest = Math.max(Math.abs(value) / 100, ...slices.map(({ difference, error }) => Math.abs(difference) + 1.96 * (error ?? 0)));
      render(
        body,
        h("p", { class: "chart-note" }, `${metricName(metric)}, larger is better. All ${count(rows, "row")}: `, h("b", {}, fixed(value)), ". Check ", h("span", {}, number(check)), ", ", when(at), "."),
        h(
          "div",
          { class: "scroll", "data-scroll": "slices", tabindex: "0", role: "region", "aria-label": "Slices, as a table" },
          h(
            "table",
            { class: "rows" },
            h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Slice"), h("th", { scope: "col", class: "n" }, "Rows"), h("th", { scope: "col", class: "n spare" }, metricName(metric)), h("th", { scope: "col", class: "n" }, "Difference"), h("th", { scope: "col", class: "wide" }, "worse ← all rows → better"))),
            h("tbody", {}, slices.map((slice) => row(slice, widest))),
          ),
        ),
        note && h("p", { class: "note" }, note),
      );
    },
  });
