// Is it still as good as it was? Measured band, served, the champion's own holdout; served beside raw.

import { TimeChart } from "./charts.js";
import { h, render } from "./dom.js";
import { ago, count, fixed, metricName, number } from "./format.js";
import { Panel, empty } from "./panel.js";
import { nameOf, symbol } from "./symbols.js";

const KINDS = { held: "held", lost: "lost", "not known yet": "unknown" };

/** Neighbours with the same value as one piece: `[{from, to, text, kind}]`. */
function pieces(at, values, dress) {
  const found = [];
  values.forEach((value, index) => {
    const last = found.at(-1);
    if (last?.value === value) last.to = at[index + 1] ?? at[index];
    else found.push({ value, from: at[index], to: at[index + 1] ?? at[index], ...dress(value) });
  });
  return found;
}

export function qualityPanel(context) {
  let measured = null;
  let losses = null;
  let metric = "";

  const describe = ({ at, served, low, high, holdout }) => {
    const last = at.length - 1;
    const at_ = served[last] === null ? "not measured" : `${fixed(served[last])} (${fixed(low[last])} to ${fixed(high[last])})`;
    return `${metricName(metric)} at ${count(at.length, "check")}; newest ${ago(at[last])}: served ${at_}, own holdout ${fixed(holdout[last])}. The button "Table" shows every number.`;
  };

  const panel = new Panel({
    id: "quality",
    title: "Quality over time",
    lead: "What the matured labels say of the answers as they were served, against the champion's own holdout.",
    topics: ["quality"],
    path: ({ span }) => `page/quality${span}`,
    close() {
      measured?.destroy();
      losses?.destroy();
      measured = losses = null;
    },
    draw(body, { metric: name, higher_is_better: higher, span, series, losses: compared, marks }) {
      if (!series.at.length) {
        panel.close();
        render(body, span.since === null
          ? empty("Not known yet: the first check measures quality, once labelled rows have come (", h("code", {}, "POST /feedback"), "). Each check adds a point.")
          : empty("No check in this span. ", h("a", { href: "#/" }, "Show all")));
        return;
      }
      metric = name ?? "quality";
      if (!measured) {
        measured = new TimeChart({
          label: "Quality over time",
          height: 260,
          format: (value) => fixed(value),
          choose: context.choose,
          describe,
          series: [
            { label: "95% interval", band: ["low", "high"], colour: "c-served", spans: false },
            { label: "served", key: "served", colour: "c-served", width: 2.5, spans: false },
            { label: "own holdout", key: "holdout", colour: "c-holdout", dash: [7, 4], step: true },
          ],
          extras: [
            { label: "matured rows", key: "rows", format: number },
            { label: "verdict", key: "state", format: String },
            { label: "check", key: "check", format: number },
          ],
          ribbons: [
            { label: "version", of: (data) => pieces(data.at, data.version, (value) => ({ text: `v${value}`, kind: value % 2 ? "odd" : "even" })) },
            { label: "verdict", of: (data) => pieces(data.at, data.state, (value) => ({ text: value, kind: KINDS[value] })) },
          ],
        });
        losses = new TimeChart({
          label: "Loss of what was served beside the raw output",
          height: 150,
          format: (value) => fixed(value),
          choose: context.choose,
          describe: ({ at, served, raw }) => `Loss at ${count(at.length, "adaptation")}, lower is better; newest: served ${fixed(served.at(-1))}, raw ${fixed(raw.at(-1))}.`,
          series: [
            { label: "served (adapted)", key: "served", colour: "c-served", width: 2.5 },
            { label: "raw output", key: "raw", colour: "c-raw", dash: [3, 3] },
          ],
          extras: [
            { label: "adaptation", key: "number", format: number },
            { label: "rows compared", key: "rows", format: number },
          ],
        });
        measured.note = h("p", { class: "chart-note" });
        losses.note = h("p", { class: "chart-note" });
        losses.title = h("h3", {});
        losses.none = h("p", { class: "empty small" }, "Served beside raw: appears with the first adaptation that was measured on matured rows.");
        render(body, measured.note, measured.element, h("div", { class: "sub" }, losses.title, losses.note, losses.element, losses.none));
      }
      const kinds = [...new Set(marks.map(({ kind }) => kind))];
      render(measured.note,
        `${metricName(metric)}, ${higher ? "higher" : "lower"} is better. ${span.of > series.at.length ? `${series.at.length} of ${count(span.of, "check")} shown. ` : ""}`,
        kinds.length > 0 && h("span", { class: "mark-legend" }, kinds.map((kind) => h("span", {}, symbol(kind), nameOf(kind).toLowerCase()))));
      measured.set(series, marks);
      const any = compared.at.length > 0;
      losses.element.hidden = losses.note.hidden = !any;
      losses.none.hidden = any;
      losses.title.textContent = any ? "Served beside raw" : "";
      losses.note.textContent = `${metricName(compared.metric)} on matured rows that were answered while adapted, lower is better.`;
      if (any) losses.set(compared);
    },
  });
  panel.short = "Quality";
  panel.spanned = true;
  return panel;
}
