// Numbers as the server's sentences write them; times in the reader's own form, exact UTC in the title.

import { h } from "./dom.js";

const NONE = "–";
const numbers = new Map();

function numberFormat(options) {
  const key = JSON.stringify(options);
  if (!numbers.has(key)) numbers.set(key, new Intl.NumberFormat("en", options));
  return numbers.get(key);
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** `12,345` or `0.0123`: three digits that matter, whole numbers in full. */
export function number(value, digits = 3) {
  if (!known(value)) return NONE;
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return numberFormat({ maximumFractionDigits: 0 }).format(value);
  return numberFormat({ maximumSignificantDigits: digits }).format(value);
}

/** Always with this many decimals, so that columns line up. */
export const fixed = (value, decimals = 3) =>
  known(value) ? numberFormat({ minimumFractionDigits: decimals, maximumFractionDigits: decimals }).format(value) : NONE;

/** `83.5%`: one decimal at most, `0%` and `100%` only where nothing and all is meant; as `monitoring/wording.py`; a `column` lines up. */
export function percent(value, column = false) {
  if (!known(value)) return NONE;
  const text = numberFormat({ style: "percent", minimumFractionDigits: column && value !== 0 && value !== 1 ? 1 : 0, maximumFractionDigits: 1 }).format(value);
  if (parseFloat(text) === 0 && value > 0) return "<0.1%";
  if (parseFloat(text) === 100 && value < 1 - 1e-9) return ">99.9%";
  return text;
}

/** `+0.012` or `−0.012`. */
export const signed = (value, decimals = 3) =>
  known(value)
    ? numberFormat({ minimumFractionDigits: decimals, maximumFractionDigits: decimals, signDisplay: "exceptZero" }).format(value).replace("-", "−")
    : NONE;

/** A metric's value: four decimals, fewer where it has a unit and is large. */
export const measured = (value) => (known(value) && Math.abs(value) >= 10 ? number(value, 4) : fixed(value, 4));

export const compact = (value) =>
  known(value) ? numberFormat({ notation: "compact", maximumSignificantDigits: 3 }).format(value) : NONE;

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${number(value)} ${units[power]}`;
}

/** `350 ms`, `12 s`, `4 min`, `3 h`, `2 days`. */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  if (size < 0.995) return `${number(seconds * 1000, 2)} ms`;
  if (size < 90) return `${number(seconds, 2)} s`;
  if (size < 90 * 60 && size !== 3600) return `${Math.round(seconds / 60)} min`;
  if (size < 36 * 3600) return `${number(seconds / 3600, 2)} h`;
  return `${number(seconds / 86400, 2)} days`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const second = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const year = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });
const month = new Intl.DateTimeFormat(undefined, { month: "short", year: "numeric" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

const date = (at) => new Date(at * 1000);

export const utc = (at) => `${date(at).toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** Day and time in the reader's form. */
export function moment(at, exact = false) {
  const when = date(at);
  const now = new Date();
  const hour = (exact ? second : clock).format(when);
  if (when.toDateString() === now.toDateString()) return hour;
  return `${(when.getFullYear() === now.getFullYear() ? day : year).format(when)}, ${hour}`;
}

/** `3 minutes ago`, `in 20 seconds`, `now`. */
export function ago(at, now = Date.now() / 1000) {
  const away = at - now;
  const size = Math.abs(away);
  if (size < 5) return "now";
  if (size < 60) return relative.format(Math.round(away / 5) * 5, "second");
  if (size < 3600) return relative.format(Math.round(away / 60), "minute");
  if (size < 36 * 3600) return relative.format(Math.round(away / 3600), "hour");
  return relative.format(Math.round(away / 86400), "day");
}

/** `<time>` that says how long ago, kept true by `tick`; unknown times are a dash, what is `due` is never past. */
export function when(at, { exact = false, due = false } = {}) {
  if (!known(at)) return h("span", {}, NONE);
  const text = exact ? moment(at) : relativeTo(at, due);
  return h("time", { datetime: date(at).toISOString(), title: `${moment(at, true)} · ${utc(at)}`, data: exact ? {} : { at, due: due ? "yes" : "" } }, text);
}

/** What is due is never in the past: it is due now. */
const relativeTo = (at, due, now = Date.now() / 1000) => (due && at < now ? "now" : ago(at, now));

/** Every relative time of the page says again how long ago it is. */
export function tick() {
  const now = Date.now() / 1000;
  for (const one of document.querySelectorAll("time[data-at]")) {
    const text = relativeTo(Number(one.dataset.at), one.dataset.due === "yes", now);
    if (one.textContent !== text) one.textContent = text;
  }
}

/** Labels of a time axis, in the reader's form, as fine as its steps are. */
export function axisTimes(splits, step) {
  let before = "";
  return splits.map((at) => {
    const when = date(at);
    if (step >= 28 * 86400) return month.format(when);
    if (step >= 86400) return day.format(when);
    const today = day.format(when);
    const text = (step < 60 ? second : clock).format(when);
    const label = before && today !== before ? `${text}\n${today}` : before ? text : `${text}\n${today}`;
    before = today;
    return label;
  });
}

/** `roc_auc` as `roc auc`: a name of the product as words. */
export const words = (name) => String(name ?? "").replaceAll("_", " ");

const METRICS = { auc: "AUC", f1: "F1", f1_macro: "macro F1", brier: "Brier score", r2: "R²", mae: "MAE", rmse: "RMSE", mse: "MSE" };

/** A metric's name as people write it; as `monitoring/wording.py`. */
export const metricName = (name) => METRICS[name] ?? words(name);

/** The first of a long digest; all of it in the title. */
export const digest = (text) => h("code", { title: text }, text.length > 16 ? `${text.slice(0, 12)}…` : text);

/** `1 row`, `2 rows`. */
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;
