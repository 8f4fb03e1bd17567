// Requests to this server: JSON in, JSON out; a cookie signs them, a header guards the writes.

/** Raised for every answer that is not 2xx, and for none at all (`status` 0). */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let csrf = "";
let revision = "";
let onSignedOut = () => {};

/** The guard of writes, from `page/session`. */
export const guardWith = (token) => {
  csrf = token;
};

/** What the store was like when the server last told: another one that answers then looks, too. */
export const knows = (told) => {
  revision = told;
};

/** What to do when the server no longer knows the session. */
export const whenSignedOut = (act) => {
  onSignedOut = act;
};

async function said(response) {
  const text = await response.text();
  try {
    const { error, detail } = JSON.parse(text);
    return error ?? (typeof detail === "string" ? detail : text);
  } catch {
    return text.slice(0, 300) || `the server answered ${response.status}`;
  }
}

async function ask(path, { headers = {}, ...options } = {}) {
  let response;
  try {
    const all = revision ? { ...headers, "x-evergreen-revision": revision } : headers;
    response = await fetch(path, { credentials: "same-origin", cache: "no-cache", headers: all, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the server does not answer");
  }
  if (response.ok) return response;
  if (response.status === 401 && !options?.signsIn) onSignedOut();
  throw new Refused(response.status, await said(response));
}

/** An answer and its mark, which is compared before it is parsed, so that nothing is drawn twice. */
export async function read(path, signal) {
  const response = await ask(path, { signal });
  return [response.headers.get("etag"), await response.text()];
}

/** The parsed answer. */
export const get = async (path, signal, options) => (await ask(path, { signal, ...options })).json();

/** A write; its parsed answer, null when there is none. */
export async function send(method, path, body, { signsIn = false } = {}) {
  const response = await ask(path, {
    method,
    signsIn,
    headers: { "content-type": "application/json", ...(csrf ? { "x-evergreen-csrf": csrf } : {}) },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}
