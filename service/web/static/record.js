// Is everything that was answered on its way into the store, and how long do labels take?

import { h, render } from "./dom.js";
import { histogram } from "./figures.js";
import { bytes, count, duration, number, percent } from "./format.js";
import { Panel, empty, figure } from "./panel.js";

export const recordPanel = () =>
  new Panel({
    id: "record",
    title: "Record",
    lead: "What was answered, on its way into the store. Of this replica.",
    uses: ["record"],
    draw(body, { record: { spool_bytes: spool, lag_s: lag, drops, unfit, dead_letters: dead, delays } }) {
      render(
        body,
        h(
          "dl",
          { class: "figures" },
          figure("Spool", bytes(spool), "recorded, not yet in the store"),
          figure("Lag", duration(lag), lag === 0 ? "all is stored" : "age of the oldest of these"),
          figure("Dropped", number(drops), "answered and not recorded", drops ? "bad" : null),
          figure("Unfit", number(unfit), "left out by a reader", unfit ? "warn" : null),
          figure("Not storable", number(dead), "since the server started", dead ? "bad" : null),
        ),
        h("div", { class: "sub" },
          h("h3", {}, "How long labels take"),
          delays
            ? [
                histogram([{ name: "labels", kind: "window", counts: delays.labels }], delays.edges_s.map(duration), { label: "Labels by the time from answer to label", height: 150 }),
                h("p", { class: "note" }, `The newest ${count(delays.rows, "label")}${delays.without ? `; ${percent(delays.without / delays.rows)} belong to no prediction of the record` : ""}.`),
              ]
            : empty("Not known yet: no label has come. They are sent to ", h("code", {}, "POST /feedback"), ".")),
      );
    },
  });
