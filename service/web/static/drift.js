// Has what comes in moved? A row is a feature, a column a check; a cell opens the histograms of that check.

import { get } from "./api.js";
import { h, render } from "./dom.js";
import { categories, histogram, setLegend } from "./figures.js";
import { count, fixed, moment, number, percent, when } from "./format.js";
import { Panel, empty } from "./panel.js";

const CELL_PX = 18;
const WIDEST_PX = 34;
const FEW = 15;

/** How far it moved, in five steps: `times` is the distance over what it had to reach. */
const step = (times) => (times === null ? "none" : times < 0.5 ? "0" : times < 1 ? "1" : times < 2 ? "2" : times < 4 ? "3" : "4");
const STEPS = [["0", "less than half"], ["1", "half to 1 ×"], ["2", "moved: 1 to 2 ×"], ["3", "2 to 4 ×"], ["4", "4 × and more"]];

function nameOf({ output, name }) {
  return output ? "prediction" : name;
}

function badges({ output, news, matters, state, counted }) {
  const said = [];
  if (news) said.push(["news", "●", "news: it began with the newest check"]);
  if (matters) said.push(["matters", "◆", "matters: the answers depend on it"]);
  if (state && state !== "over" && !news) said.push(["state", { suspected: "?", continues: "→", began: "●", remembered: "↺" }[state] ?? "", state]);
  if (!counted && !output) said.push(["state", "○", "measured, and never an alarm"]);
  return said.map(([kind, sign, title]) => h("span", { class: `badge is-${kind}`, title, role: "img", "aria-label": title }, sign));
}

/** Labels of edges: moments for dates, numbers otherwise. */
const edgeText = (edges, kind) => edges.map((edge) => (kind === "datetime" ? moment(edge) : number(edge)));

function pictures({ kind, edges, categories: names, reference, window: came, note, feature }) {
  const parts = [reference && { name: "reference", kind: "reference", bars: reference }, came && { name: "window", kind: "window", bars: came }].filter(Boolean);
  if (!parts.length) return empty(note || "Neither reference nor window can be read any more.");
  let labels = names;
  const sets = parts.map((part) => ({ ...part, counts: [...part.bars.counts], note: `${count(part.bars.rows, "row")}${part.bars.missing ? `, ${percent(part.bars.missing / (part.bars.rows || 1))} missing` : ""}` }));
  if (edges) {
    labels = edgeText(edges, kind);
    if (parts.some(({ bars }) => bars.below)) {
      sets.forEach(({ counts, bars }) => counts.unshift(bars.below));
      labels.unshift("below");
    }
    if (parts.some(({ bars }) => bars.above)) {
      sets.forEach(({ counts, bars }) => counts.push(bars.above));
      labels.push("above");
    }
  }
  const label = `${feature}: shares of the rows in reference and window`;
  const head = h("tr", {}, h("th", { scope: "col" }, edges ? "Bin" : "Category"), sets.map(({ name }) => h("th", { scope: "col", class: "n" }, name)));
  const bins = sets[0].counts.length;
  const rows = Array.from({ length: bins }, (_, bin) => h("tr", {}, h("th", { scope: "row" }, edges ? `${labels[bin]} to ${labels[bin + 1]}` : labels[bin]), sets.map(({ counts }) => h("td", { class: "n" }, number(counts[bin])))));
  return [
    setLegend(sets),
    edges ? histogram(sets, labels, { label }) : categories(sets, labels, { label }),
    note && h("p", { class: "note" }, note),
    h("details", { class: "as-table", "data-key": `table-${feature}` }, h("summary", {}, "Table"), h("table", {}, h("caption", { class: "sr" }, label), h("thead", {}, head), h("tbody", {}, rows))),
  ];
}

export function driftPanel() {
  let data = null;
  let all = false;
  let last = 0; // Columns hidden at the newer end.
  let opened = null; // {check, feature}
  let focused = [0, Infinity];
  let columns = 0;

  const strip = h("div", { class: "strip" });
  const detail = h("div", { class: "drift-detail", hidden: true, role: "region", "aria-label": "Reference and window", tabindex: "-1" });
  const lead = h("p", { class: "chart-note" });
  const pager = h("div", { class: "pager" });
  const legend = h("ul", { class: "legend steps", "aria-label": "Colours: distance over what it had to reach" }, STEPS.map(([kind, text]) => h("li", {}, h("span", { class: `cell-swatch is-${kind}` }), text)), h("li", {}, h("span", { class: "cell-swatch is-none" }), "not measured"), h("li", {}, h("span", { class: "badge is-news" }, "●"), "news"), h("li", {}, h("span", { class: "badge is-matters" }, "◆"), "matters"));

  const room = () => strip.clientWidth - (strip.clientWidth < 560 ? 156 : 264);
  const fits = () => Math.max(4, Math.floor(room() / CELL_PX));
  const sized = new ResizeObserver(() => {
    if (data?.checks.length && fits() !== columns) draw();
  });
  sized.observe(strip);

  function draw() {
    const { features, checks, times, scores, news } = data;
    columns = fits();
    const until = Math.max(Math.min(columns, checks.length), checks.length - last);
    const from = Math.max(0, until - columns);
    const began = new Set(news.map(([feature, check]) => `${feature}/${check}`));
    const shown = all ? features : features.slice(0, FEW);
    focused = [Math.min(focused[0], shown.length - 1), Math.max(from, Math.min(until - 1, focused[1]))];
    const rows = shown.map((feature, row) => {
      const cells = [];
      for (let index = from; index < until; index += 1) {
        const value = times[row][index];
        const isNew = began.has(`${row}/${index}`);
        const { id, at } = checks[index];
        const title = `${nameOf(feature)}, check ${id}, ${moment(at)}: ${value === null ? "not measured" : `${number(value, 2)} × what it had to reach${value >= 1 ? ", moved" : ""}`}${isNew ? ", began here" : ""}`;
        cells.push(
          h(
            "td",
            {},
            h(
              "button",
              {
                type: "button",
                class: `cell is-${step(value)}${opened?.check === id && opened.feature === feature.name ? " is-open" : ""}`,
                title,
                "aria-label": title,
                "data-key": `cell-${row}-${index}`,
                "data-row": row,
                "data-column": index,
                tabindex: row === focused[0] && index === focused[1] ? "0" : "-1",
              },
              isNew ? "●" : "",
            ),
          ),
        );
      }
      return h(
        "tr",
        {},
        h(
          "th",
          { scope: "row", title: feature.sentence || feature.note },
          h("span", { class: "feature-name" }, nameOf(feature)),
          h("span", { class: "feature-badges" }, badges(feature)),
        ),
        h("td", { class: "n importance" }, feature.output ? "output" : feature.importance === null ? "–" : percent(feature.importance, true)),
        h("td", { class: `n times${feature.moved ? " moved" : ""}` }, feature.score === null ? "–" : `${fixed(feature.times, feature.times < 10 ? 2 : 0)} ×`),
        cells,
      );
    });
    const width = until - from;
    strip.style.setProperty("--cell", `${Math.max(CELL_PX, Math.min(WIDEST_PX, Math.floor(room() / width))) - 2}px`);
    render(
      strip,
      h(
        "table",
        { class: "heat" },
        h("caption", { class: "sr" }, "Drift by feature and check. Arrow keys move, Enter opens the histograms."),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Feature"), h("th", { scope: "col", class: "n" }, h("abbr", { title: "Importance: share in how the champion's answers vary" }, "Imp.")), h("th", { scope: "col", class: "n" }, "Now"), h("th", { scope: "colgroup", colspan: width, class: "span-head" }, h("span", {}, moment(checks[from].at)), width > 9 && h("span", {}, moment(checks[until - 1].at))))),
        h("tbody", {}, rows),
        h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "share moved"), h("td", { class: "importance" }), h("td", {}), Array.from({ length: width }, (_, index) => {
          const share = data.share[from + index];
          const bar = h("span", { class: `share${data.detected[from + index] ? " is-detected" : ""}` });
          bar.style.setProperty("height", `${share ? Math.max(3, Math.round(share * 26)) : 0}px`);
          return h("td", { title: share === null ? "not measured" : `${percent(share)} moved${data.detected[from + index] ? ", drift" : ""}` }, bar);
        }))),
      ),
    );
    render(
      pager,
      h("span", {}, `${count(checks.length, "check")}${data.span.of > checks.length ? ` of ${number(data.span.of)}` : ""}`),
      features.length > FEW && h("button", { type: "button", "data-key": "all", on: { click: () => { all = !all; draw(); } } }, all ? `First ${FEW} only` : `All ${features.length} features`),
      checks.length > width && [
        h("button", { type: "button", "data-key": "older", disabled: from === 0, on: { click: () => { last = Math.min(checks.length - columns, last + Math.ceil(columns / 2)); draw(); } } }, "Older"),
        h("button", { type: "button", "data-key": "newer", disabled: last === 0, on: { click: () => { last = Math.max(0, last - Math.ceil(columns / 2)); draw(); } } }, "Newer"),
      ],
    );
  }

  function move(event) {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    const cell = event.target.closest(".cell");
    if (!way || !cell) return;
    event.preventDefault();
    const cells = [...strip.querySelectorAll(`.cell[data-row="${Math.max(0, Number(cell.dataset.row) + way[0])}"]`)];
    if (!cells.length) return;
    const first = Number(cells[0].dataset.column);
    const next = cells[Math.max(0, Math.min(cells.length - 1, Number(cell.dataset.column) + way[1] - first))];
    cell.tabIndex = -1;
    next.tabIndex = 0;
    focused = [Number(next.dataset.row), Number(next.dataset.column)];
    next.focus();
  }

  async function open(row, index) {
    const feature = data.features[row];
    const check = data.checks[index];
    opened = { check: check.id, feature: feature.name };
    focused = [row, index];
    draw();
    detail.hidden = false;
    const close = h("button", { type: "button", class: "text-button", on: { click: shut } }, "Close");
    const newest = index === data.checks.length - 1;
    const value = data.times[row][index];
    const head = [
      h("div", { class: "detail-head" }, h("h3", {}, nameOf(feature), h("span", { class: "muted" }, " at check ", number(check.id), ", ", when(check.at))), close),
      h(
        "p",
        { class: "note" },
        newest && feature.sentence ? `${feature.sentence}. ` : "",
        value === null ? `Not measured. ${newest ? feature.note : ""}` : `${feature.test}: ${fixed(data.scores[row][index])}, had to reach ${fixed(feature.threshold)} to have moved (${number(value, 2)} ×).`,
        newest && feature.unseen ? ` ${count(feature.unseen, "row")} with a category that training never saw.` : "",
        newest && feature.outside ? ` ${count(feature.outside, "row")} outside the range of training.` : "",
        " ",
        h("a", { href: `manage/reports/${check.id}`, target: "_blank", rel: "noopener" }, "Evidently's report of this check", h("span", { class: "sr" }, " (new tab)")),
      ),
    ];
    render(detail, head, h("p", { class: "loading" }, "Reading …"));
    try {
      const found = await get(`page/drift/${check.id}/${encodeURIComponent(feature.name)}`);
      if (opened?.check === check.id && opened.feature === feature.name) render(detail, head, pictures(found));
    } catch (error) {
      render(detail, head, h("p", { class: "trouble" }, `This could not be read: ${error.message}.`));
    }
  }

  function shut() {
    opened = null;
    detail.hidden = true;
    render(detail);
    draw();
    strip.querySelector('.cell[tabindex="0"]')?.focus({ preventScroll: true });
  }

  strip.addEventListener("keydown", move);
  strip.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) open(Number(cell.dataset.row), Number(cell.dataset.column));
  });
  detail.addEventListener("keydown", (event) => event.key === "Escape" && shut());

  const panel = new Panel({
    id: "drift",
    title: "Drift",
    lead: "How far each feature is from what the champion learnt on, by check; ordered by importance × distance.",
    topics: ["drift"],
    path: ({ span }) => `page/drift${span}`,
    close: () => sized.disconnect(),
    draw(body, found) {
      data = found;
      if (!strip.isConnected) render(body, lead, strip, legend, detail, pager);
      const any = data.checks.length > 0 && data.features.length > 0;
      for (const part of [strip, legend, pager]) part.hidden = !any;
      const moved = data.features.filter((feature) => feature.moved && feature.counted && !feature.output);
      const output = data.features.some((feature) => feature.moved && feature.output);
      render(
        lead,
        !any
          ? data.skipped ? `Not known yet: ${data.skipped}.` : (data.span.since === null ? "Not known yet: the first check compares what came in with what the model learnt on." : "No check in this span.")
          : data.skipped
            ? `The newest check measured nothing: ${data.skipped}`
            : moved.length
              ? `${count(moved.length, "feature")} moved at the newest check: ${moved.slice(0, 5).map(nameOf).join(", ")}${moved.length > 5 ? " …" : ""}${output ? "; the prediction moved too" : ""}.`
              : `At the newest check no feature that counts has moved${output ? "; the prediction has" : ""}.`,
      );
      lead.className = any ? "chart-note" : "empty";
      if (any) draw();
    },
  });
  panel.spanned = true;
  return panel;
}
