// What a person may do, with a reason that stands in the run.

import { send } from "./api.js";
import { fresh, h, render } from "./dom.js";
import { Panel } from "./panel.js";

/** Asks for the reason and does it; the answer names the run that will. */
function confirm({ title, text, verb, ask, act }) {
  const id = fresh("why");
  const why = h("textarea", { id, rows: 3, maxlength: 1000, autofocus: true });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const go = h("button", { type: "submit", class: "primary" }, verb);
  const extra = ask?.();
  const dialog = h(
    "dialog",
    { "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title),
    h("p", {}, text),
    h(
      "form",
      {
        on: {
          submit: async (event) => {
            event.preventDefault();
            go.disabled = true;
            try {
              const { run } = await act(why.value.trim(), extra?.value);
              render(said, "Asked for: ", h("a", { href: `#/runs/${run}` }, `run ${run}`), " does it.");
              said.hidden = false;
              dialog.close();
            } catch (error) {
              trouble.textContent = `Not done: ${error.message}`;
            } finally {
              go.disabled = false;
            }
          },
        },
      },
      extra?.element,
      h("label", { for: id }, "Why"),
      why,
      h("p", { class: "hint" }, "It stands in the run, with your token's name."),
      trouble,
      h("div", { class: "dialog-end" }, h("button", { type: "button", on: { click: () => dialog.close() } }, "Cancel"), go),
    ),
  );
  const from = document.activeElement;
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (from?.isConnected) from.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
}

const said = h("p", { class: "said", role: "status", hidden: true });

function versionChooser(versions, champion) {
  const select = h("select", { id: "promote-version" }, versions.filter((one) => one !== champion).map((one) => h("option", { value: one }, `version ${one}`)));
  return { element: h("div", {}, h("label", { for: "promote-version" }, "Version"), select), get value() { return select.value; } };
}

function all({ version, previous, versions, paused, adaptation, running }) {
  const other = versions.some((one) => one !== version);
  const adapted = !["off", "never"].includes(adaptation.state);
  return [
    {
      key: "retrain",
      title: "Train now",
      text: "A new version is trained on every matured row, and put in service only if it passes the gates.",
      verb: "Train",
      not: paused ? "The loop is paused: resume it first." : running?.kind === "retrain" ? `Run ${running.run} is training already; this one would wait.` : null,
      blocks: Boolean(paused),
      act: (why) => send("POST", "manage/retrain", { why }),
    },
    {
      key: "promote",
      title: "Promote a version",
      text: "Another registered version is put in service, without gates.",
      verb: "Promote",
      not: other ? null : "There is no other version.",
      blocks: !other,
      ask: () => versionChooser(versions, version),
      act: (why, chosen) => send("POST", `manage/models/${chosen}/promote`, { why }),
    },
    {
      key: "rollback",
      title: "Roll back",
      text: previous === null ? "The previous version is put back in service." : `Version ${previous} is put back in service instead of version ${version}.`,
      verb: "Roll back",
      not: previous === null ? "There is nothing to go back to." : null,
      blocks: previous === null,
      act: (why) => send("POST", "manage/rollback", { why }),
    },
    paused
      ? { key: "loop", title: "Resume the loop", text: "Checks, trainings and adaptation go on by themselves again.", verb: "Resume", act: (why) => send("POST", "manage/resume", { why }) }
      : { key: "loop", title: "Pause the loop", text: "Nothing is checked, trained or adapted by itself until you resume it. Answers are not touched.", verb: "Pause", act: (why) => send("POST", "manage/pause", { why }) },
    adapted
      ? { key: "adaptation", title: "Adaptation off", text: "The champion answers with its own output until you switch it on again.", verb: "Switch off", act: (why) => send("POST", "manage/adaptation", { state: "off", why }) }
      : { key: "adaptation", title: "Adaptation on", text: "What is served is adapted again, from the next check on.", verb: "Switch on", not: adaptation.state === "never" ? "A setting switches it off." : null, blocks: adaptation.state === "never", act: (why) => send("POST", "manage/adaptation", { state: "on", why }) },
  ];
}

export const actionsPanel = () =>
  new Panel({
    id: "actions",
    title: "Actions",
    uses: ["version", "previous", "versions", "paused", "adaptation", "running", "scopes", "name"],
    draw(body, state) {
      const may = state.scopes.includes("operate");
      const list = all(state);
      render(
        body,
        !may && h("p", { class: "empty", id: "read-only" }, `The token ${state.name} may read and change nothing: actions need the scope operate.`),
        said,
        h(
          "ul",
          { class: "actions" },
          list.map((action) => {
            const not = may ? action.not : null;
            return h(
              "li",
              {},
              h("div", {}, h("b", {}, action.title), h("p", { id: `about-${action.key}` }, action.text, not && h("span", { class: "not" }, " ", not))),
              h("button", { type: "button", "data-key": action.key, "aria-describedby": `about-${action.key}`, disabled: !may || action.blocks, on: { click: () => confirm(action) } }, `${action.verb} …`),
            );
          }),
        ),
      );
    },
  });
