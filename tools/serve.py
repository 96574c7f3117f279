"""Serve the built site on 127.0.0.1, from the given port or the next free one."""

import argparse
import functools
import http.server
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"


class Handler(http.server.SimpleHTTPRequestHandler):
    # A browser refuses modules and WebAssembly of another type, and not every
    # system's table of types has them.
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def log_message(self, *_):
        pass  # a line for each file tells a reader nothing


def open_server(port, site=SITE):
    """A server on the first free port from `port` on, among twenty."""
    handler = functools.partial(Handler, directory=str(site))
    for candidate in range(port, port + 20):
        try:
            return http.server.ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except OSError:
            continue
    sys.exit(f"ports {port} to {port + 19} are taken; choose one: make serve PORT=9000")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    if not (SITE / "index.html").exists():
        sys.exit(f"{SITE} is not built; run `make book`")
    server = open_server(parser.parse_args().port)
    address = f"http://127.0.0.1:{server.server_port}/"
    print(f"The book is at {address} (Ctrl+C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
