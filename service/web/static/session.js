// Who is signed in. Signing in again keeps the place: a dialog over the page, which stays as it is.

import { Refused, get, guardWith, send } from "./api.js";
import { h } from "./dom.js";
import { keep, kept } from "./keep.js";

const HINT = "evergreen-session-until"; // So that a first visit asks for a token and not for an error.

let known = null;

/** `{name, scopes, csrf, expires_at}`, null when nobody is signed in. */
export const session = () => known;

/** Whether the token may do what this scope allows. */
export const may = (scope) => known?.scopes.includes(scope) ?? false;

function know(found) {
  known = found;
  guardWith(found?.csrf ?? "");
  keep(HINT, found && String(found.expires_at ?? ""));
  return found;
}

const mayBeKnown = () => Number(kept(HINT)) > Date.now() / 1000;

/** The session of the cookie, null when there is none or it has ended. Raises `Refused` when the server is away. */
export async function resume() {
  if (!mayBeKnown()) return know(null);
  try {
    return know(await get("page/session", undefined, { signsIn: true }));
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return know(null);
    throw error;
  }
}

export async function signOut() {
  await send("DELETE", "page/session");
  know(null);
}

/** Asks for a token until one is taken; `lead` says why it asks. */
export function signIn(lead) {
  const trouble = h("p", { class: "trouble", role: "alert", id: "sign-in-trouble" });
  const field = h("input", {
    id: "token",
    type: "password",
    autocomplete: "current-password",
    spellcheck: "false",
    required: true,
    autofocus: true,
    "aria-describedby": "sign-in-hint sign-in-trouble",
  });
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h(
    "form",
    { novalidate: true },
    h("label", { for: "token" }, "Token"),
    field,
    h("p", { class: "hint", id: "sign-in-hint" }, "Make one on the server: ", h("code", {}, "evergreen token add NAME --scope read"), ". With the scope read it sees everything and changes nothing; actions need operate."),
    trouble,
    h("div", { class: "dialog-end" }, button),
  );
  const dialog = h("dialog", { class: "sign-in", "aria-labelledby": "sign-in-title" }, h("h2", { id: "sign-in-title" }, "Sign in"), h("p", {}, lead), form);
  document.body.append(dialog);
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  field.focus();
  return new Promise((done) => {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const token = field.value.trim();
      trouble.textContent = token ? "" : "Enter a token first.";
      if (!token) return;
      button.disabled = true;
      try {
        const found = know(await send("POST", "page/session", { token }, { signsIn: true }));
        field.value = "";
        dialog.close();
        dialog.remove();
        done(found);
      } catch (error) {
        trouble.textContent = error.status === 401 ? "This token is not known, or it was revoked." : `Not signed in: ${error.message}.`;
        field.select();
        field.focus();
      } finally {
        button.disabled = false;
      }
    });
  });
}
