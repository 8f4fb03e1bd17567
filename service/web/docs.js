// Shows one of the two documents. The token stays in this page; it is sent to /manage of this service and nowhere else.
const token = document.getElementById("token");

function show(url) {
  SwaggerUIBundle({
    url,
    dom_id: "#api",
    deepLinking: false,
    validatorUrl: null,
    requestInterceptor: (request) => {
      const to = new URL(request.url, location.href);
      if (token.value && to.origin === location.origin && to.pathname.includes("/manage/")) {
        request.headers.authorization = `Bearer ${token.value}`;
      }
      return request;
    },
  });
}

document.getElementById("predictions").addEventListener("click", () => show("docs.json"));
document.getElementById("management").addEventListener("click", () => show("manage/openapi.json"));
show("docs.json");
