// Series over time, by uPlot: one canvas that is reused, a legend in words, marks that link, and a table of the same.

import uPlot from "./uPlot.esm.js";
import { fresh, h, render } from "./dom.js";
import { axisTimes, moment, number, utc } from "./format.js";
import { nameOf, symbol } from "./symbols.js";

const MARK_PX = 22;
const LEAST_S = 60;
const QUIET = "adaptation"; // They come with every check: small, without a line.
const live = new Set();

const probe = document.body.appendChild(h("span", { hidden: true }));

/** A colour of the style sheet as a canvas takes it: what `light-dark()` chooses now. */
function colour(name) {
  probe.style.setProperty("color", `var(--${name})`);
  return getComputedStyle(probe).color;
}

const still = matchMedia("(prefers-color-scheme: dark)");

/** Every chart is drawn again in the colours of now. */
export const recolour = () => live.forEach((chart) => chart.recolour());
still.addEventListener("change", recolour);

/** A line as it is drawn in the legend. */
function swatch(series) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("viewBox", "0 0 24 10");
  line.setAttribute("class", "swatch");
  line.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", series.band ? "rect" : "path");
  if (series.band) for (const [name, value] of Object.entries({ x: 1, y: 1, width: 22, height: 8, rx: 2, opacity: 0.35 })) shape.setAttribute(name, value);
  else {
    shape.setAttribute("d", "M1 5h22");
    shape.setAttribute("stroke-width", series.width ?? 2);
    if (series.dash) shape.setAttribute("stroke-dasharray", series.dash.join(" "));
  }
  shape.style.setProperty(series.band ? "fill" : "stroke", `var(--${series.colour})`);
  line.append(shape);
  return line;
}

/**
 * A chart of columnar data `{at, name: [...]}`.
 *
 * `series`: `[{key, label, colour, dash?, width?, band?: [low, high], step?}]`, `colour` a custom property of the style
 * sheet; `format` of a value, `onAxis` of one on the axis; `describe(data)` its text alternative; `choose(since, until)` when a span is drawn out;
 * `ribbons`: `[{label, of(data) -> [{from, to, text, kind}]}]`, pieces of time in words below the plot; `extras`:
 * `[{key, label, format}]`, what else is known of each point.
 */
export class TimeChart {
  #plot = null;
  #data = null;
  #marks = [];
  #hints = [];
  #sized;
  #clusters = "";

  constructor({ label, series, format = number, onAxis = format, height = 220, zero = false, describe = () => "", choose = null, sync = "time", ribbons = [], extras = [] }) {
    Object.assign(this, { label, series, format, onAxis, height, zero, describe, choose, sync, ribbons, extras });
    this.lines = series.flatMap((one) => (one.band ? [{ ...one, key: one.band[1], edge: true }, { ...one, key: one.band[0], edge: true }] : [one]));
    const id = fresh("chart");
    this.legend = h("ul", { class: "legend" });
    this.toggle = h("button", { class: "text-button", type: "button", "aria-expanded": "false", "aria-controls": `${id}-table`, on: { click: () => this.#tabled() } }, "Table");
    this.canvas = h("div", { class: "plot", "aria-hidden": "true" });
    this.canvas.style.setProperty("min-height", `${height}px`);
    this.lane = h("div", { class: "marks", role: "group", "aria-label": `What happened: ${label}`, on: { keydown: (event) => this.#walk(event), pointerover: (event) => this.#hint(event), focusin: (event) => this.#hint(event), pointerleave: () => this.#unhint(), focusout: () => this.#unhint() } });
    this.strips = h("div", { class: "ribbons", hidden: !ribbons.length });
    this.tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.table = h("div", { class: "chart-table", id: `${id}-table`, hidden: true, tabindex: "0", role: "region", "aria-label": `${label}, as a table` });
    this.summary = h("figcaption", { class: "sr" });
    this.element = h("figure", { class: "chart" }, h("div", { class: "chart-head" }, this.legend, this.toggle), h("div", { class: "chart-body" }, this.lane, this.canvas, this.tip), this.strips, this.summary, this.table);
    this.#sized = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width > 0 && this.#plot && Math.abs(width - this.#plot.width) >= 1) this.#plot.setSize({ width, height: this.height });
      else if (width > 0 && !this.#plot && this.#data) this.#draw();
    });
    this.#sized.observe(this.canvas);
    live.add(this);
  }

  /** Draws this; `marks` are `[{at, kind, text, run}]`. */
  set(data, marks = []) {
    this.#data = data;
    this.#marks = marks;
    this.#clusters = "";
    this.#legended();
    this.summary.textContent = this.describe(data);
    const columns = this.#columns();
    if (this.#plot) this.#plot.setData(columns);
    else this.#draw();
    if (!this.table.hidden) this.#fill();
  }

  recolour() {
    if (!this.#plot) return;
    this.#plot.destroy();
    this.#plot = null;
    this.#clusters = "";
    this.#draw();
  }

  destroy() {
    live.delete(this);
    this.#sized.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
    this.element.remove();
  }

  #columns() {
    const { at } = this.#data;
    return [at, ...this.lines.map(({ key }) => this.#data[key] ?? at.map(() => null))];
  }

  #legended() {
    const last = (key) => (this.#data[key] ?? []).findLast((value) => value !== null);
    render(
      this.legend,
      this.series
        .filter((one) => one.band || last(one.key) !== undefined || !one.optional)
        .map((one) => {
          const value = one.band ? [last(one.band[0]), last(one.band[1])] : [last(one.key)];
          const text = value.some((part) => part === undefined) ? "" : value.map((part) => this.format(part)).join(" to ");
          return h("li", {}, swatch(one), h("span", {}, one.label), text && h("b", {}, text));
        }),
    );
  }

  #draw() {
    const width = Math.floor(this.canvas.clientWidth);
    if (!width || !this.#data) return;
    const axis = { stroke: colour("muted"), font: `12px ${getComputedStyle(document.body).fontFamily}`, grid: { stroke: colour("grid"), width: 1 }, ticks: { show: false }, gap: 8 };
    const series = this.lines.map((one) => ({
      label: one.label,
      stroke: one.edge ? "transparent" : colour(one.colour),
      width: one.edge ? 0 : (one.width ?? 2),
      dash: one.dash,
      spanGaps: one.spans ?? true,
      paths: one.step ? uPlot.paths.stepped({ align: 1 }) : undefined,
      points: one.edge ? { show: false } : { show: true, filter: (plot, index) => this.#dots(plot.data[index]), size: 5, fill: colour(one.colour), stroke: colour(one.colour) },
    }));
    const bands = [];
    this.lines.forEach((one, index) => {
      if (one.edge && this.lines[index + 1]?.band === one.band) bands.push({ series: [index + 1, index + 2], fill: colour(`${one.colour}-fill`) });
    });
    this.#plot = new uPlot(
      {
        width,
        height: this.height,
        padding: [10, 30, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: this.sync }, drag: { x: Boolean(this.choose), y: false, setScale: false }, points: { size: 7 } },
        select: { show: Boolean(this.choose) },
        scales: { x: { range: () => this.#span() }, y: { range: (_, low, high) => this.#range(low, high) } },
        axes: [
          { ...axis, space: (_, __, ___, ____, dim) => (dim < 420 ? 62 : 90), size: (_, labels) => (labels?.some((label) => label?.includes("\n")) ? 46 : 30), values: (_, splits, __, ___, step) => axisTimes(splits, step) },
          { ...axis, space: 34, size: (plot, values) => this.#room(plot, values), values: (_, splits) => splits.map((value) => this.onAxis(value)) },
        ],
        series: [{}, ...series],
        bands,
        hooks: {
          draw: [(plot) => this.#rules(plot)],
          setCursor: [(plot) => this.#told(plot)],
          setSelect: [(plot) => this.#chosen(plot)],
        },
      },
      this.#columns(),
      this.canvas,
    );
  }

  /** Where a dot is drawn: everywhere when there are few (null), else where no line would show the point. */
  #dots(values) {
    if (values.length < 40) return null;
    const none = (index) => (values[index] ?? null) === null;
    return [...values.keys()].filter((index) => !none(index) && none(index - 1) && none(index + 1));
  }

  /** From the first to the last of points and marks, and never less than a minute. */
  #span() {
    const { at: points } = this.#data;
    const all = [...this.#marks.map(({ at }) => at), ...points.slice(0, 1), ...points.slice(-1)];
    if (!all.length) return [Date.now() / 1000 - LEAST_S, Date.now() / 1000];
    const [from, until] = [Math.min(...all), Math.max(...all)];
    const room = Math.max(0, LEAST_S - (until - from)) / 2;
    return [from - room, until + room];
  }

  #range(low, high) {
    if (low === null || low === undefined) return [0, 1];
    if (this.zero) return [0, high > 0 ? high * 1.15 : 1];
    const room = (high - low || Math.abs(high) || 1) * 0.12;
    return [low - room, high + room];
  }

  #room(plot, values) {
    if (!values?.length) return 60;
    plot.ctx.save();
    plot.ctx.font = plot.axes[1].font[0];
    const widest = Math.max(...values.map((value) => plot.ctx.measureText(value ?? "").width)) / devicePixelRatio;
    plot.ctx.restore();
    return Math.max(this.ribbons.length ? 60 : 0, Math.ceil(widest) + 16);
  }

  /** Lines where something happened, and its links above them; what stands too close is one link with a number. */
  #rules(plot) {
    const { ctx, bbox } = plot;
    const [from, until] = [plot.scales.x.min, plot.scales.x.max];
    const shown = this.#marks.filter(({ at }) => at >= from && at <= until);
    ctx.save();
    ctx.strokeStyle = colour("rule");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    const groups = [];
    for (const mark of shown.toSorted((a, b) => a.at - b.at)) {
      const x = plot.valToPos(mark.at, "x", true);
      const px = x / devicePixelRatio;
      const before = groups.at(-1);
      if (before && px - before.from < MARK_PX) before.marks.push(mark);
      else {
        groups.push({ from: px, marks: [mark] });
      }
    }
    for (const group of groups) {
      const ruled = group.marks.find(({ kind }) => kind !== QUIET);
      if (!ruled) continue;
      const x = Math.round(plot.valToPos(ruled.at, "x", true));
      group.from = x / devicePixelRatio;
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
    const place = { left: bbox.left / devicePixelRatio, width: bbox.width / devicePixelRatio, from, until };
    const strips = this.ribbons.map(({ of }) => of(this.#data));
    const key = JSON.stringify([groups, place, strips]);
    if (key === this.#clusters) return;
    this.#clusters = key;
    queueMicrotask(() => {
      this.#place(groups);
      this.#unroll(strips, place);
    });
  }

  #unroll(strips, { left, width, from, until }) {
    const x = (at) => ((Math.max(from, Math.min(until, at)) - from) / (until - from || 1)) * width;
    render(
      this.strips,
      strips.map((pieces, index) =>
        h(
          "div",
          { class: "ribbon" },
          h("span", { class: "ribbon-name", style: { width: `${left - 8}px` } }, this.ribbons[index].label),
          h(
            "div",
            { class: "ribbon-pieces", style: { left: `${left}px`, width: `${width}px` } },
            pieces
              .map((piece) => [piece, x(piece.from), x(piece.to ?? until)])
              .filter(([, a, b]) => b - a >= 1)
              .map(([{ text, kind }, a, b]) =>
                h("span", { class: `piece is-${kind}`, title: text, style: { left: `${a}px`, width: `${Math.max(1, b - a - 1)}px` } }, b - a > text.length * 7 + 8 ? text : ""),
              ),
          ),
        ),
      ),
    );
  }

  #place(groups) {
    this.lane.hidden = this.#marks.length === 0;
    this.#hints = [];
    render(
      this.lane,
      groups.map(({ from, marks }, index) => {
        const kinds = [...new Set(marks.map(({ kind }) => kind))];
        const quiet = kinds.length === 1 && kinds[0] === QUIET;
        const first = marks.toSorted((a, b) => RANK.indexOf(b.kind) - RANK.indexOf(a.kind))[0];
        const text = marks.slice(-6).map(({ at, kind, text: said }) => `${moment(at)} ${nameOf(kind)}: ${said}`);
        if (marks.length > 1) text.unshift(`${marks.length} events${marks.length > 6 ? ", the last of them" : ""}:`);
        this.#hints.push([from, text]);
        const target = marks.length === 1 || kinds.length === 1 ? marks.at(-1) : first;
        const props = {
          class: `mark is-${first.kind}${quiet ? " is-quiet" : ""}`,
          "aria-label": text.join(" "),
          "data-key": `mark-${target.run ?? target.at}`,
          tabindex: index === groups.length - 1 ? "0" : "-1",
          style: { left: `${from}px` },
          data: { index },
        };
        const body = [symbol(first.kind), marks.length > 1 && !quiet && h("span", { class: "many" }, String(marks.length))];
        return target.run ? h("a", { ...props, href: `#/runs/${target.run}` }, body) : h("span", { ...props, role: "note" }, body);
      }),
    );
  }

  #walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...this.lane.children];
    const now = all.indexOf(document.activeElement);
    const next = all[Math.max(0, Math.min(all.length - 1, now + step))];
    all[now]?.setAttribute("tabindex", "-1");
    next?.setAttribute("tabindex", "0");
    next?.focus();
  }

  #hint({ target }) {
    const mark = target.closest(".mark");
    if (!mark) return;
    const [x, lines] = this.#hints[Number(mark.dataset.index)];
    render(this.tip, lines.map((line) => h("p", {}, line)));
    this.#tipAt(x, 30);
  }

  #unhint() {
    this.tip.hidden = true;
  }

  #tipAt(x, y) {
    this.tip.hidden = false;
    const room = this.canvas.clientWidth;
    const wide = this.tip.offsetWidth;
    this.tip.style.setProperty("left", `${Math.max(0, Math.min(room - wide, x + 14 + wide > room ? x - wide - 14 : x + 14))}px`);
    this.tip.style.setProperty("top", `${y}px`);
  }

  #told(plot) {
    const { left, top, idx } = plot.cursor;
    if (left < 0 || idx === null || idx === undefined || !plot.over.matches(":hover")) {
      if (!this.lane.matches(":hover, :focus-within")) this.#unhint();
      return;
    }
    const at = this.#data.at[idx];
    const value = (key) => this.#data[key]?.[idx] ?? null;
    const rows = this.series
      .map((one) => [one, one.band ? one.band.map(value) : [value(one.key)]])
      .filter(([, parts]) => parts.every((part) => part !== null))
      .map(([one, parts]) => h("div", { class: "tip-row" }, swatch(one), h("span", {}, one.label), h("b", {}, parts.map((part) => this.format(part)).join(" to "))));
    render(this.tip, h("p", { class: "tip-at" }, moment(at, true)), rows.length ? rows : h("p", {}, "nothing measured here"), this.extras.filter(({ key }) => value(key) !== null).map(({ key, label, format }) => h("div", { class: "tip-row" }, h("span", {}, label), h("b", {}, format(value(key))))));
    this.#tipAt(plot.over.offsetLeft + left, Math.max(0, top - 10));
  }

  #chosen(plot) {
    const { left, width } = plot.select;
    if (!this.choose || width < 8) return;
    const [since, until] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.choose(Math.floor(since), Math.ceil(until));
  }

  #tabled() {
    const opens = this.table.hidden;
    this.table.hidden = !opens;
    this.toggle.setAttribute("aria-expanded", String(opens));
    if (opens) this.#fill();
    else render(this.table);
  }

  #fill() {
    const { at } = this.#data;
    const names = this.series.flatMap((one) => (one.band ? [[`${one.label}, low`, one.band[0], this.format], [`${one.label}, high`, one.band[1], this.format]] : [[one.label, one.key, this.format]]));
    names.push(...this.extras.map(({ label, key, format }) => [label, key, format]));
    const rows = at.map((_, index) => index).reverse();
    render(
      this.table,
      h(
        "table",
        {},
        h("caption", { class: "sr" }, this.label),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), names.map(([name]) => h("th", { scope: "col", class: "n" }, name)))),
        h("tbody", {}, rows.map((index) => h("tr", {}, h("th", { scope: "row", title: utc(at[index]) }, moment(at[index])), names.map(([, key, format]) => h("td", { class: "n" }, format(this.#data[key]?.[index] ?? null)))))),
      ),
    );
  }
}

const RANK = ["other", "adaptation", "training", "refusal", "alert", "promotion", "rollback"];
