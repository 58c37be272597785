"""A web server of the standard library, with faults on demand."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and parts of them; `server.faults` says what goes wrong, by the end of a path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *given) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        fault = next((fault for end, fault in self.server.faults.items() if self.path.endswith(end)), None)
        if callable(fault):
            fault = fault()
        if fault == "slow":
            time.sleep(1)
            self.close_connection = True
            return
        if fault == "closed":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == "moved" and not self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/moved" + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = Path(self.translate_path(self.path.removeprefix("/moved")))
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or fault == "whole":
            self.send_response(200)
        else:
            total, first, last = len(content), int(asked[1]), int(asked[2])
            content = content[first : last + 1]
            if not content:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-5] if fault == "short" else content)
        self.close_connection = self.close_connection or fault == "short"


@contextmanager
def serving(folder: Path) -> Iterator[Any]:
    """Serves a folder: the server has `url`, `faults` (see `Quiet`), and `requests`, the paths that were asked for."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.handle_error = lambda *given: None  # the reader has gone
        running.daemon_threads, running.faults, running.requests = True, {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
