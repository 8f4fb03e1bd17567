// The first view: one sentence, and below it a panel for each question.

import { actionsPanel } from "./actions.js";
import { decisionsPanel } from "./decisions.js";
import { distributionPanel } from "./distribution.js";
import { h, render } from "./dom.js";
import { driftPanel } from "./drift.js";
import { fleetPanel } from "./fleet.js";
import { moment } from "./format.js";
import { heroPanel } from "./hero.js";
import { qualityPanel } from "./quality.js";
import { recordPanel } from "./record.js";
import { segmentsPanel } from "./segments.js";
import { trafficPanel } from "./traffic.js";

const SPANS = [
  ["all", "All", null],
  ["30d", "30 days", 30 * 86400],
  ["7d", "7 days", 7 * 86400],
  ["1d", "24 hours", 86400],
  ["1h", "1 hour", 3600],
];

/** What of the series is asked for: a named span up to now, or one drawn out on a chart. */
function spanOf(query) {
  const since = Number(query.get("since"));
  const until = Number(query.get("until"));
  if (since > 0 && until > since) return { name: "chosen", since, until };
  const [name] = SPANS.find(([known]) => known === query.get("span")) ?? SPANS[0];
  return { name };
}

function asked({ name, since, until }) {
  if (name === "chosen") return `?since=${since}&until=${until}`;
  const [, , seconds] = SPANS.find(([known]) => known === name);
  // By the minute: the address stays the same long enough for an answer to be kept.
  return seconds === null ? "" : `?since=${Math.floor(Date.now() / 60_000) * 60 - seconds}`;
}

export function overview(main, jump, [part], query, shows) {
  let span = spanOf(query);
  let closed = false;
  const context = {
    /** The span as a query, for the addresses of series. */
    get span() {
      return asked(span);
    },
    choose(since, until) {
      location.hash = `#/?since=${since}&until=${until}`;
    },
  };
  const fed = [recordPanel(), fleetPanel(), actionsPanel()];
  const hero = heroPanel((state) => {
    shows(state.revision);
    fed.forEach((panel) => panel.give(state, context));
  });
  const reading = [hero, qualityPanel(context), decisionsPanel(), driftPanel(), distributionPanel(context), segmentsPanel(), trafficPanel(context)];
  const panels = [...reading, ...fed];

  const chooser = h("div", { class: "spans", role: "group", "aria-label": "Span of all series" });
  function chosen() {
    render(
      chooser,
      h("span", { class: "spans-name" }, "Span"),
      SPANS.map(([name, text]) => h("a", { href: name === "all" ? "#/" : `#/?span=${name}`, "data-key": name, "aria-current": span.name === name ? "true" : null }, text)),
      span.name === "chosen" && h("a", { href: "#/", "aria-current": "true", title: "Back to everything" }, `${moment(span.since)} – ${moment(span.until)} ✕`),
    );
  }
  chosen();
  render(main, hero.element, chooser, panels.filter((panel) => panel !== hero).map(({ element }) => element));
  jump.hidden = false;
  render(
    jump,
    panels
      .filter((panel) => panel !== hero)
      .map(({ id, short, title }) => h("a", { href: `#/${id}`, on: { click: () => show(id) } }, short ?? title)),
  );

  function show(id) {
    const found = panels.find((panel) => panel.id === id);
    if (!found) return;
    found.element.scrollIntoView({ block: "start" });
    found.element.focus({ preventScroll: true });
  }

  const load = (some) => Promise.all(some.map((panel) => panel.load(context)));
  document.title = "Evergreen";
  // Who comes back to this entry of the history finds the place that was left.
  const place = history.state?.y ?? 0;
  const keepPlace = () => history.replaceState({ y: Math.round(scrollY) }, "");
  load(reading).then(() => {
    if (closed) return;
    if (part && !place) show(part);
    else scrollTo(0, place);
    addEventListener("scrollend", keepPlace);
  });

  return {
    changed(topics) {
      load(reading.filter((panel) => topics === null || panel.topics.some((topic) => topics.has(topic))));
    },
    /** Another span or part of the same view; what is drawn stays until the new data is there. */
    goTo([next], asks) {
      const before = JSON.stringify(span);
      span = spanOf(asks);
      if (next) {
        show(next);
        return true;
      }
      if (before !== JSON.stringify(span)) {
        chosen();
        load(reading.filter(({ spanned }) => spanned));
      } else scrollTo(0, history.state?.y ?? 0);
      return true;
    },
    close() {
      closed = true;
      removeEventListener("scrollend", keepPlace);
      panels.forEach((panel) => panel.leave());
    },
  };
}
