// What is answered, and what turns out to be true: now, and over time.

import { TimeChart } from "./charts.js";
import { h, render } from "./dom.js";
import { categories, histogram, setLegend } from "./figures.js";
import { ago, count, number, percent } from "./format.js";
import { Panel, empty } from "./panel.js";

const LINES = [["c-1", null], ["c-2", [7, 4]], ["c-3", [2, 3]], ["c-4", [10, 3, 2, 3]], ["c-5", [4, 2]]];

/** Answers and labels on one time axis: `{at, "p:<name>": [...], "l:<name>": [...]}`. */
function joined(predictions, labels) {
  const at = [...new Set([...predictions.at, ...labels.at])].sort((a, b) => a - b);
  const index = new Map(at.map((one, place) => [one, place]));
  const data = { at };
  for (const [prefix, { at: own, values }] of [["p", predictions], ["l", labels]]) {
    for (const [name, column] of Object.entries(values)) {
      const spread = at.map(() => null);
      own.forEach((one, place) => {
        spread[index.get(one)] = column[place];
      });
      data[`${prefix}:${name}`] = spread;
    }
  }
  return data;
}

function seriesOf(task, classes) {
  if (task === "regression")
    return [
      { label: "answers, 10 to 90 %", band: ["p:low", "p:high"], colour: "c-served" },
      { label: "answers, mean", key: "p:mean", colour: "c-served" },
      { label: "labels, mean", key: "l:mean", colour: "c-holdout", dash: [7, 4] },
    ];
  const shown = task === "binary" ? classes.slice(1) : classes.slice(0, LINES.length);
  return shown.flatMap((name, index) =>
    task === "binary"
      ? [
          { label: `answered ${name}`, key: `p:${name}`, colour: "c-served", width: 2.5 },
          { label: `labels ${name}`, key: `l:${name}`, colour: "c-holdout", dash: [7, 4], optional: true },
        ]
      : [{ label: `answered ${name}`, key: `p:${name}`, colour: LINES[index][0], dash: LINES[index][1] }],
  );
}

function bars(title, sets, ...after) {
  const { edges, categories: names } = sets[0].bars;
  const label = `${title}: ${sets.map(({ name }) => name).join(" and ")}`;
  const dressed = sets.map((one) => ({ ...one, counts: one.bars.counts, note: count(one.bars.rows, "row") }));
  return h("div", { class: "half" }, h("h3", {}, title), setLegend(dressed), edges ? histogram(dressed, edges.map((edge) => number(edge)), { label, height: 170 }) : categories(dressed, names, { label }), after);
}

export function distributionPanel(context) {
  let chart = null;
  let drawn = "";
  const now = h("div", { class: "halves" });
  const over = h("div", { class: "sub" });

  const panel = new Panel({
    id: "outputs",
    title: "Predictions and labels",
    lead: "How the newest answers are spread, beside the labels that came.",
    topics: ["distribution"],
    path: ({ span }) => `page/distribution${span}`,
    close() {
      chart?.destroy();
      chart = null;
      drawn = "";
    },
    draw(body, { task, classes, scores, predictions, labels, predictions_over_time: answered, labels_over_time: came }) {
      if (!predictions) {
        panel.close();
        render(body, empty("Nothing was answered yet. The spread of the answers appears with the first rows sent to ", h("code", {}, "POST /predict"), "."));
        return;
      }
      if (!now.isConnected) render(body, now, over);
      const pair = [{ name: "answers", kind: "window", bars: predictions }];
      const alike = labels && JSON.stringify(labels.edges) === JSON.stringify(predictions.edges);
      if (alike) pair.unshift({ name: "labels", kind: "reference", bars: labels });
      render(
        now,
        scores && bars(`Probability of ${classes[1] ?? "the second class"}`, [{ name: "answers", kind: "window", bars: scores }]),
        bars(task === "regression" ? "Values" : "Classes", pair, !labels && empty("Labels: not known yet.")),
        labels && !alike && bars("Labels", [{ name: "labels", kind: "reference", bars: labels }]),
      );
      const wanted = JSON.stringify([task, classes]);
      if (wanted !== drawn) {
        chart?.destroy();
        drawn = wanted;
        chart = new TimeChart({
          label: task === "regression" ? "Answers and labels over time" : "Share of each class over time",
          height: 180,
          zero: task !== "regression",
          format: task === "regression" ? number : percent,
          onAxis: task === "regression" ? number : percent,
          choose: context.choose,
          describe: ({ at }) => (at.length ? `${count(at.length, "sample")} of rows that followed each other; newest ${ago(at.at(-1))}. The button "Table" shows every number.` : ""),
          series: seriesOf(task, classes),
        });
        render(over, h("h3", {}, "Over time"), chart.element);
      }
      over.hidden = answered.at.length < 2;
      chart.set(joined(answered, came));
    },
  });
  panel.short = "Outputs";
  panel.spanned = true;
  return panel;
}
