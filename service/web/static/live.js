// What changed on the server, as it happens: server-sent events; asking every five seconds when those do not work.

import { get, knows } from "./api.js";
import { ago, moment } from "./format.js";

const POLL_MS = 5_000;
const LONGEST_WAIT_MS = 30_000;
const SILENCE_MS = 30_000;

const EVERYTHING = null;
const ALWAYS = new Set(["state", "traffic"]); // They change without anything new in the store.

export class Live {
  #source = null;
  #retry = 0;
  #timers = { again: 0, poll: 0, silence: 0 };
  #revision = null;
  #lostSince = null;
  #running = false;
  #known = "off";

  /** `changed(topics)` gets a set of topics, or `EVERYTHING`; `shown(state, since)` how the line stands. */
  constructor(changed, shown) {
    this.changed = changed;
    this.shown = shown;
    document.addEventListener("visibilitychange", () => this.#visibility());
    addEventListener("online", () => this.#running && this.#connect());
  }

  start() {
    this.#running = true;
    this.#retry = 0;
    if (!document.hidden) this.#connect();
  }

  /** The revision of what the page shows, when it has not heard of one yet. */
  shows(revision) {
    this.#revision ??= revision;
  }

  stop() {
    this.#running = false;
    this.#close();
    this.#say("off");
  }

  #visibility() {
    if (!this.#running) return;
    if (document.hidden) {
      this.#close();
      this.#say("paused");
    } else {
      this.#retry = 0;
      this.#connect();
      this.changed(ALWAYS); // And whatever else happened meanwhile, when the line is up.
    }
  }

  #close() {
    this.#source?.close();
    this.#source = null;
    for (const name of Object.keys(this.#timers)) {
      clearTimeout(this.#timers[name]);
      this.#timers[name] = 0;
    }
  }

  #connect() {
    this.#close();
    const source = new EventSource("page/events");
    this.#source = source;
    source.onopen = () => {
      this.#retry = 0;
      clearTimeout(this.#timers.poll);
      this.#timers.poll = 0;
      this.#say("live");
      this.#listenForSilence();
    };
    source.addEventListener("changed", (event) => {
      const { topics, revision } = JSON.parse(event.data);
      knows(revision);
      this.#listenForSilence();
      // The first event of a line names no topic: what changed while nobody listened is not known.
      if (topics.length) this.changed(new Set(topics));
      else if (revision !== this.#revision) this.changed(EVERYTHING);
      this.#revision = revision;
    });
    source.onerror = () => this.#again();
  }

  #listenForSilence() {
    // A line that is cut without a word says nothing, and neither does a quiet one: after a while ask.
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(async () => {
      if (await this.#asked()) this.#listenForSilence();
      else this.#again();
    }, SILENCE_MS);
  }

  #again() {
    this.#source?.close();
    this.#source = null;
    const wait = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** this.#retry) * (0.75 + Math.random() / 2);
    this.#retry += 1;
    clearTimeout(this.#timers.again);
    this.#timers.again = setTimeout(() => this.#connect(), wait);
    if (!this.#timers.poll) this.#poll();
  }

  async #poll() {
    this.#timers.poll = setTimeout(() => this.#poll(), POLL_MS);
    if (await this.#asked()) this.#say("polling");
  }

  /** Whether the server answers; what changed since is told. */
  async #asked() {
    try {
      const { revision } = await get("page/state");
      this.changed(this.#revision === revision ? ALWAYS : EVERYTHING);
      this.#revision = revision;
      return true;
    } catch (error) {
      if (error.status === 401) this.stop();
      else if (this.#running) this.#say("lost");
      return false;
    }
  }

  #say(state) {
    if (state === "lost") this.#lostSince ??= Date.now() / 1000;
    else if (state === "live" || state === "polling") this.#lostSince = null;
    if (state === this.#known) return;
    this.#known = state;
    this.shown(state, this.#lostSince);
  }
}

const WORDS = {
  live: ["Live", "Changes are shown as they happen"],
  polling: ["Every 5 s", "Events do not come through: the page asks every five seconds"],
  lost: ["Lost", "The server does not answer"],
  paused: ["Paused", "Nothing is read while this tab is hidden"],
  off: ["", ""],
};

/** How the line stands, in the bar, and aloud when it is lost. */
export function showLine(bar, notice) {
  let timer = 0;
  return (state, since) => {
    bar.dataset.state = state;
    [bar.textContent, bar.title] = WORDS[state];
    clearInterval(timer);
    notice.hidden = state !== "lost";
    if (state !== "lost") return;
    const say = () => {
      notice.textContent = `Connection lost at ${moment(since, true)} (${ago(since)}). What you see is from then; the page tries again by itself.`;
    };
    say();
    timer = setInterval(say, 5_000);
  };
}
