"""Exits 0 when the server of this container answers `/livez` on its configured address, else 1 with the reason.

The image's health check. It runs every few seconds, so it imports nothing but Python's own.
"""

import http.client
import os
import sys
import tomllib

TIMEOUT_S = 2.0


def configured() -> tuple[str, int]:
    """(host, port) from the environment, else from `evergreen.toml`, else the image's own."""
    home = os.environ.get("EVERGREEN_HOME", "/data")
    try:
        with open(os.environ.get("EVERGREEN_CONFIG") or os.path.join(home, "evergreen.toml"), "rb") as file:
            serve = tomllib.load(file).get("serve", {})
    except FileNotFoundError:
        serve = {}
    host = os.environ.get("EVERGREEN_SERVE__HOST") or serve.get("host", "127.0.0.1")
    port = os.environ.get("EVERGREEN_SERVE__PORT") or serve.get("port", 3000)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)


def main() -> int:
    host, port = configured()
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host} port {port} does not answer: {error}", file=sys.stderr)
        return 1
    if status != 200:
        print(f"{host} port {port} answers /livez with {status}", file=sys.stderr)
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main())
