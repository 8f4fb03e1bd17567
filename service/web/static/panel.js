// One part of the page: a heading, what it is read from, how it is drawn; it says when it is empty, late or in trouble.

import { read } from "./api.js";
import { h, render } from "./dom.js";
import { when } from "./format.js";

const RETRY_MS = 3_000;

export class Panel {
  #shown = null;
  #reading = null;
  #again = false;
  #readAt = null;
  #later = 0;

  /**
   * `id` names the panel in links; `topics` which of the server's topics change it; `path(context)` where it is read, or
   * `uses` what it is given of the state; `draw(body, data, context)` draws it, `close()` lets go of what `draw` made.
   */
  constructor({ id, title, lead = "", topics = [], path = null, uses = [], draw, close = () => {} }) {
    Object.assign(this, { id, title, topics, path, uses, draw, close });
    this.body = h("div", { class: "panel-body" }, h("p", { class: "loading" }, "Reading …"));
    this.trouble = h("p", { class: "trouble", role: "status", hidden: true });
    this.element = h(
      "section",
      { class: "panel", id: `panel-${id}`, "aria-labelledby": `title-${id}`, tabindex: "-1" },
      h("div", { class: "panel-head" }, h("div", {}, h("h2", { id: `title-${id}` }, title), lead && h("p", { class: "lead" }, lead))),
      this.trouble,
      this.body,
    );
  }

  /** Reads again and draws what changed; one reading at a time, the last wish wins. */
  async load(context) {
    if (this.#reading) {
      this.#again = true;
      return;
    }
    clearTimeout(this.#later);
    this.#reading = new AbortController();
    try {
      const [mark, text] = await read(this.path(context), this.#reading.signal);
      this.#readAt = Date.now() / 1000;
      this.trouble.hidden = true;
      if (mark !== this.#shown) {
        if (this.#shown === null) render(this.body);
        this.#shown = mark;
        await this.draw(this.body, JSON.parse(text), context);
      }
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) this.#complain(error, context);
    } finally {
      this.#reading = null;
    }
    if (this.#again) {
      this.#again = false;
      await this.load(context);
    }
  }

  /** Draws what another panel has read: of it, what `uses` names. */
  give(all, context) {
    const data = Object.fromEntries(this.uses.map((name) => [name, all[name]]));
    const text = JSON.stringify(data);
    if (text === this.#shown) return;
    if (this.#shown === null) render(this.body);
    this.#shown = text;
    this.draw(this.body, data, context);
  }

  leave() {
    this.#reading?.abort();
    this.#again = false;
    clearTimeout(this.#later);
    this.close();
  }

  #complain(error, context) {
    if (error.status === 503) this.#later = setTimeout(() => this.load(context), RETRY_MS);
    this.trouble.hidden = false;
    render(this.trouble, `This could not be read: ${error.message}. `, this.#readAt ? ["What you see was read ", when(this.#readAt), "."] : null);
    if (this.#shown === null) render(this.body);
    if (error.status === undefined) throw error; // A mistake of this page is not hidden.
  }
}

/** What a panel says while there is nothing to show: what will appear, and when. */
export const empty = (...text) => h("p", { class: "empty" }, text);

const long = (value) => [value].flat(Infinity).filter(Boolean).reduce((sum, part) => sum + (part.textContent ?? String(part)).length, 0) > 22;

/** A number with its name, for rows of key figures. */
export const figure = (name, value, note = null, kind = null) =>
  h("div", { class: `figure${kind ? ` is-${kind}` : ""}` }, h("dt", {}, name), h("dd", { class: long(value) ? "long" : null }, value), note && h("dd", { class: "note" }, note));
