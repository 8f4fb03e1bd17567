// The page: signs in, opens the view that the address names, and hands on what changes.

import { whenSignedOut } from "./api.js";
import { recolour } from "./charts.js";
import { h, render } from "./dom.js";
import { tick } from "./format.js";
import { keep } from "./keep.js";
import { Live, showLine } from "./live.js";
import { overview } from "./overview.js";
import { run } from "./run.js";
import { resume, session, signIn, signOut } from "./session.js";
import { versions } from "./versions.js";

const NUMBER = "([1-9][0-9]{0,9})";
const VIEWS = [
  [new RegExp(`^/runs/${NUMBER}$`), run],
  [new RegExp(`^/versions/${NUMBER}/${NUMBER}$`), versions],
  [/^\/?([a-z]*)$/, overview],
];

const main = document.querySelector("#main");
const jump = document.querySelector("#jump");
const themeButton = document.querySelector("#theme");
const signOutButton = document.querySelector("#sign-out");
const who = document.querySelector("#who");

let view = null;
let asking = false;

/** `#/drift?span=1d` as the path and what is asked of it. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  return [path || "/", new URLSearchParams(query)];
}

const live = new Live(
  (topics) => view?.changed(topics),
  showLine(document.querySelector("#live"), document.querySelector("#lost")),
);

function open() {
  if (!session()) return;
  const [path, query] = place();
  for (const [pattern, make] of VIEWS) {
    const found = path.match(pattern);
    if (!found) continue;
    const parts = found.slice(1);
    if (view?.make === make && view.goTo?.(parts, query)) return;
    view?.close();
    view = make(main, jump, parts, query, (revision) => live.shows(revision));
    view.make = make;
    return;
  }
  view?.close();
  view = null;
  jump.hidden = true;
  render(main, h("div", { class: "panel" }, h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "Back to the overview"))));
}

/** Asks who it is until it is known, then goes on where the reader was. */
async function enter(lead) {
  if (asking) return;
  asking = true;
  live.stop();
  try {
    let found = null;
    try {
      found = await resume();
    } catch (error) {
      lead = `${error.message}. Sign in when it is back.`;
    }
    found ??= await signIn(lead);
    signOutButton.hidden = false;
    who.textContent = `Signed in as ${found.name} (${found.scopes.join(", ")})`;
  } finally {
    asking = false;
  }
  if (view) view.changed(null);
  else open();
  live.start();
}

const THEMES = ["system", "light", "dark"];
const GLYPHS = { system: "◐", light: "☼", dark: "☾" };

function themed(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = GLYPHS[theme];
  themeButton.title = `Colours: ${theme}`;
  themeButton.setAttribute("aria-label", `Colours: ${theme}. Change`);
  keep("evergreen-theme", theme);
}

themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  themed(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  recolour();
});
themed(document.documentElement.dataset.theme ?? "system");

signOutButton.addEventListener("click", async () => {
  await signOut();
  signOutButton.hidden = true;
  who.textContent = "";
  view?.close();
  view = null;
  jump.hidden = true;
  render(main);
  enter("You are signed out.");
});

document.querySelector("#skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

document.querySelector(".brand").addEventListener("click", () => view?.make === overview && scrollTo(0, 0));

whenSignedOut(() => enter("Your session has ended. Sign in again: the page stays where it is."));
addEventListener("hashchange", open);
setInterval(() => document.hidden || tick(), 5_000);
enter("Evergreen shows what it serves, what it measured and what it decided to those who have a token.");
