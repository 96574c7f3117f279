"""Serve the built site on 127.0.0.1, from the given port or the next free one.

Text is sent compressed, as a web host sends it.
"""

import argparse
import contextlib
import functools
import gzip
import http.server
import io
import sys
import threading
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
TEXT = {".html", ".css", ".js", ".mjs", ".json", ".svg", ".txt"}


@functools.lru_cache(maxsize=256)
def compressed(path, _modified):
    return gzip.compress(Path(path).read_bytes(), compresslevel=6, mtime=0)


class Handler(http.server.SimpleHTTPRequestHandler):
    # A browser refuses modules and WebAssembly of another type, and not every
    # system's table of types has them.
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def send_head(self):
        """Send the headers; return the file, or its compressed text, to copy."""
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if self.path.endswith("/") else path
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        asked_again = "If-Modified-Since" in self.headers
        if not accepted or asked_again or path.suffix not in TEXT or not path.is_file():
            return super().send_head()
        status = path.stat()
        body = compressed(str(path), status.st_mtime_ns)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", self.date_time_string(status.st_mtime))
        self.send_header("Vary", "Accept-Encoding")
        self.end_headers()
        return io.BytesIO(body)

    def copyfile(self, source, outputfile):
        with contextlib.suppress(ConnectionError):  # the reader has left the page
            super().copyfile(source, outputfile)

    def log_message(self, *_):
        pass  # a line for each file tells a reader nothing


def open_server(port, site=SITE):
    """A server on the first free port from `port` on, among twenty; on any for 0."""
    handler = functools.partial(Handler, directory=str(site))
    for candidate in range(port, port + 20):
        try:
            return http.server.ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except OSError:
            continue
    sys.exit(f"ports {port} to {port + 19} are taken; choose one: make serve PORT=9000")


@contextlib.contextmanager
def serving(site=SITE):
    """The address of the site, which ends with "/", served until the block ends."""
    server = open_server(0, site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
