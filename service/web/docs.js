// Shows one of the two documents. A token that is typed stays in this variable: it is sent to this service as a header,
// and stands in no address, no storage and no command that the page shows.
const DOCUMENTS = { predictions: "docs.json", management: "manage/openapi.json" };
const here = new URL(".", location.href);
const field = document.getElementById("token");
const told = document.getElementById("told");
let token = "";
let turns = 0; // an answer that comes after the next question was asked is not shown

function authorized(request) {
  const to = new URL(request.url, location.href);
  if (token && to.origin === here.origin && to.pathname.startsWith(here.pathname)) {
    request.headers = { ...request.headers, authorization: `Bearer ${token}` };
  }
  return request;
}

async function show() {
  const side = location.hash === "#management" ? "management" : "predictions";
  for (const link of document.querySelectorAll("a.side")) {
    if (link.hash === `#${side}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  told.textContent = "";
  document.getElementById("api").replaceChildren();
  const turn = ++turns;
  let spec;
  try {
    const request = authorized({ url: DOCUMENTS[side], headers: {} });
    const answer = await fetch(request.url, { headers: request.headers });
    spec = await answer.json();
    if (turn !== turns) return;
    if (!answer.ok) {
      told.textContent = answer.status === 401 ? "This document asks for a token: enter one above." : spec.error;
      if (answer.status === 401 || answer.status === 403) field.focus();
      return;
    }
  } catch (error) {
    if (turn !== turns) return;
    told.textContent = `The service does not answer (${error.message}); reload the page to try again.`;
    return;
  }
  spec.servers = [{ url: here.href.replace(/\/$/, "") }]; // also behind a proxy that puts it below a path
  SwaggerUIBundle({
    spec,
    dom_id: "#api",
    deepLinking: false,
    persistAuthorization: false,
    queryConfigEnabled: false,
    showMutatedRequest: false, // the token is no part of the commands it shows
    validatorUrl: null,
    requestInterceptor: authorized,
  });
}

function use() {
  token = field.value.trim();
  show();
}

document.getElementById("use").addEventListener("click", use);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") use();
});
window.addEventListener("hashchange", show);
show();
