// Elements made and replaced without losing the reader's place. Styles are set through the CSSOM only (strict CSP).

const SVG = "http://www.w3.org/2000/svg";

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: `h("a", {href: "#/", on: {click}}, "text")`; children that are null or false are left out. */
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);

/** An SVG element, the same way. */
export const s = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);

/** A sentence of the server: what stands between backquotes is code. */
export const told = (text) => String(text).split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

/** `root` gets these children; focus, open details and sideways scrolling of what carries a `data-key` stay. */
export function render(root, ...children) {
  const active = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const open = new Set([...root.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key));
  const scrolled = new Map([...root.querySelectorAll("[data-scroll]")].map((one) => [one.dataset.scroll, one.scrollLeft]));
  root.replaceChildren(...children.flat(Infinity).filter(Boolean));
  for (const one of root.querySelectorAll("details[data-key]")) if (open.has(one.dataset.key)) one.open = true;
  for (const one of root.querySelectorAll("[data-scroll]")) {
    if (scrolled.has(one.dataset.scroll)) one.scrollLeft = scrolled.get(one.dataset.scroll);
  }
  if (active) root.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus({ preventScroll: true });
}

/** A number that no other element of this page has, for `aria-labelledby`. */
let made = 0;
export const fresh = (name) => `${name}-${++made}`;
