// Who serves what, who does the scheduled work, and when it is due.

import { h, render } from "./dom.js";
import { number, when } from "./format.js";
import { Panel, empty } from "./panel.js";
import { stateChip } from "./symbols.js";

const table = (name, heads, rows) =>
  h(
    "div",
    { class: "scroll", "data-scroll": name, tabindex: "0", role: "region", "aria-label": name },
    h("table", { class: "rows" }, h("caption", {}, name), h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)),
  );

function worker({ replica, slot, serving, ready, failed }, champion, here) {
  const wrong = Object.entries(failed);
  const state = wrong.length ? ["lost", `cannot load ${wrong.map(([version]) => `v${version}`).join(", ")}`] : serving === null ? ["unknown", "none yet"] : serving === champion ? ["held", "serves the champion"] : ["unknown", "another version"];
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, replica, replica === here && h("span", { class: "tag" }, "here")),
    h("td", {}, slot),
    h("td", {}, serving === null ? "–" : `v${serving}`),
    h("td", {}, ready.length ? ready.map((one) => `v${one}`).join(", ") : "–"),
    h("td", { title: wrong.map(([version, why]) => `v${version}: ${why}`).join("\n") }, stateChip(...state)),
  );
}

function home({ host, home, serving, why_not_ready: why, spool_bytes: bytes, lag_s: lag, ahead_s: ahead, seen_s: seen, leads, away, here }, champion) {
  const state = away ? ["lost", "away"] : why ? ["lost", "not ready"] : serving === champion ? ["held", "serves the champion"] : ["unknown", "another version"];
  return h(
    "tr",
    {},
    h("th", { scope: "row", title: `home ${home}` }, host, here && h("span", { class: "tag" }, "here"), leads && h("span", { class: "tag" }, "leads")),
    h("td", {}, serving === null ? "–" : `v${serving}`),
    h("td", {}, bytes ? `${number(bytes)} bytes, ${number(lag)} s` : "all stored"),
    h("td", {}, `${number(seen)} s ago`, Math.abs(ahead) > 5 ? `, clock ${ahead > 0 ? "+" : "−"}${number(Math.abs(ahead))} s` : ""),
    h("td", { title: why }, stateChip(...state)),
  );
}

const job = ({ name, last_success: last, next, failures }) =>
  h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, last === null ? "none yet" : when(last)), h("td", {}, next === null ? "not planned" : when(next, { due: true })), h("td", {}, failures ? stateChip("lost", number(failures)) : "0"));

/** Two versions to be laid side by side. */
function compare(versions, version, previous) {
  const options = (chosen) => versions.map((one) => h("option", { value: one, selected: one === chosen }, `version ${one}`));
  const a = h("select", { id: "compare-a", "data-key": "compare-a" }, options(previous ?? versions.find((one) => one !== version)));
  const b = h("select", { id: "compare-b", "data-key": "compare-b" }, options(version ?? versions[0]));
  return h(
    "form",
    { class: "compare", on: { submit: (event) => { event.preventDefault(); location.hash = `#/versions/${a.value}/${b.value}`; } } },
    h("label", { for: "compare-a" }, "Compare"),
    a,
    h("label", { for: "compare-b" }, "with"),
    b,
    h("button", { type: "submit", "data-key": "compare" }, "Side by side"),
  );
}

export function fleetPanel() {
  let form = null;
  let offered = "";
  return new Panel({
    id: "fleet",
    title: "Fleet",
    uses: ["workers", "version", "here", "lease", "jobs", "versions", "previous", "announced", "replicas", "homes"],
    draw(body, { workers, version, here, lease, jobs, versions, previous, announced, replicas, homes }) {
      if (offered !== versions.join()) {
        offered = versions.join();
        form = compare(versions, version, previous);
      }
      render(
        body,
        h(
          "p",
          { class: "chart-note" },
          `${replicas.length || 1} ${replicas.length > 1 ? "replicas" : "replica"}, ${workers.length} ${workers.length === 1 ? "worker" : "workers"}. `,
          lease ? ["Scheduled work is done by ", h("b", {}, lease.here ? `${lease.holder} (this replica)` : lease.holder), "."] : "Nobody holds the lease: no scheduled work is done.",
          announced === null ? "" : ` Version ${announced} is being loaded, to become champion.`,
        ),
        homes.length > 1 ? table("Replicas", ["Host", "Serves", "Waits in its spool", "Seen", "State"], homes.map((one) => home(one, version))) : "",
        workers.length ? table("Workers", ["Replica", "Worker", "Serves", "Loaded", "State"], workers.map((one) => worker(one, version, here))) : empty("No worker has reported yet."),
        jobs === null ? empty("Another replica holds the lease, and knows the jobs.") : jobs.length ? table("Jobs", ["Job", "Last success", "Next", "Failures"], jobs.map(job)) : empty("No job has been planned yet."),
        versions.length > 1 ? form : empty("Versions can be compared once there are two."),
      );
    },
  });
}
