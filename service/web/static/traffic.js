// How much comes in, how fast it is answered, and by which version.

import { TimeChart } from "./charts.js";
import { h, render } from "./dom.js";
import { ago, compact, count, number, when } from "./format.js";
import { Panel, empty, figure } from "./panel.js";

const last = (column) => column.findLast((value) => value !== null) ?? null;
const ms = (value) => (value === null ? "–" : `${number(value, 2)} ms`);

export function trafficPanel(context) {
  let charts = null;
  const figures = h("dl", { class: "figures" });
  const note = h("p", { class: "chart-note" });
  const waits = empty("The last 15 minutes are sampled every 5 s while this page is open: they appear in a few seconds.");

  function make() {
    const describe = (what) => ({ at }) => (at.length ? `${what}; ${count(at.length, "point")}, newest ${ago(at.at(-1))}. The button "Table" shows every number.` : "");
    charts = {
      rate: new TimeChart({
        label: "Rows answered a second",
        height: 180,
        zero: true,
        format: (value) => compact(value),
        choose: context.choose,
        describe: describe("Rows answered a second, by all replicas"),
        series: [{ label: "rows a second", key: "rows_s", colour: "c-served", step: true }],
        ribbons: [{ label: "version", of: ({ versions }) => versions.map(({ version, from, to }) => ({ from, to, text: `v${version}`, kind: version % 2 ? "odd" : "even" })) }],
      }),
      speed: new TimeChart({
        label: "Time to answer, last 15 minutes",
        height: 150,
        zero: true,
        sync: "recent",
        format: ms,
        describe: describe("Time from request to answer"),
        series: [
          { label: "p50", key: "p50_ms", colour: "c-served" },
          { label: "p99", key: "p99_ms", colour: "c-holdout", width: 1.25 },
        ],
      }),
      errors: new TimeChart({
        label: "Errors a second, last 15 minutes",
        height: 150,
        zero: true,
        sync: "recent",
        format: (value) => number(value, 2),
        describe: describe("Requests a second that failed or were refused"),
        series: [
          { label: "errors (5xx, 429)", key: "errors_s", colour: "c-bad" },
          { label: "refused (4xx)", key: "refused_s", colour: "c-raw", dash: [3, 3] },
        ],
      }),
    };
    charts.halves = h("div", { class: "halves" }, h("div", { class: "half" }, h("h3", {}, "Time to answer"), charts.speed.element), h("div", { class: "half" }, h("h3", {}, "Errors"), charts.errors.element));
  }

  const panel = new Panel({
    id: "traffic",
    title: "Traffic",
    lead: "Rows from the record of all replicas; times and errors from the metrics of one.",
    topics: ["traffic"],
    path: ({ span }) => `page/traffic${span}`,
    close() {
      if (charts) for (const chart of [charts.rate, charts.speed, charts.errors]) chart.destroy();
      charts = null;
    },
    draw(body, { replica, rate, recent, totals, versions }) {
      if (!rate.at.length && !recent.at.length && !totals.requests) {
        panel.close();
        render(body, empty("Nothing was answered yet. Rows a second, times and errors appear with the first request."));
        return;
      }
      if (!charts) {
        make();
        render(body, figures, charts.rate.element, note, charts.halves, waits);
      }
      const p99 = last(recent.p99_ms) ?? totals.p99_ms;
      render(
        figures,
        figure("Rows a second", compact(last(recent.rows_s) ?? last(rate.rows_s)), `${compact(totals.rows)} rows since the server started`),
        figure("Time to answer", [h("span", {}, ms(last(recent.p50_ms) ?? totals.p50_ms)), h("small", {}, " p50")], [ms(p99), " p99"]),
        figure("Errors a second", number(last(recent.errors_s), 2), `${count(totals.errors, "error")} of ${compact(totals.requests)} requests`),
        figure("Refused a second", number(last(recent.refused_s), 2), `${count(totals.refused, "request")} refused (4xx)`),
      );
      charts.rate.element.hidden = rate.at.length < 2;
      if (rate.at.length) charts.rate.set({ ...rate, versions });
      const few = recent.at.length < 2;
      charts.halves.hidden = few;
      waits.hidden = !few;
      charts.speed.set(recent);
      charts.errors.set(recent);
      render(note, rate.exact.some((one) => !one) ? "Bins with very many rows are estimated. " : "", `Metrics of replica ${replica}`, totals.since ? [", since its server started ", when(totals.since)] : "", ".");
    },
  });
  panel.spanned = true;
  return panel;
}
