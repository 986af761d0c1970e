"""`strop report RUN --serve`: the page from a local server, which follows runs and pages all of their samples."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from strop.errors import SetupError, StropError
from strop.plain_text import visible
from strop.report.page import Book, payload, read_book, render
from strop.report.run import FILES
from strop.report.samples import LONGEST_SERVED, Query, find

HOST = "127.0.0.1"
REST = 5.0
"""Files are read again at the earliest after this many times what the last reading took: a long run stays served."""


class Shelf:
    """The book of some folders, read again when their files have changed."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = list(folders)
        self.lock = threading.Lock()
        self.version, self.next = "", 0.0
        self.book = self.read()

    def read(self) -> Book:
        begin, version = time.monotonic(), self.stamp()
        self.book = read_book(self.folders, LONGEST_SERVED)
        self.version = version  # of before: what is written meanwhile is news
        self.next = time.monotonic() + REST * (time.monotonic() - begin)
        return self.book

    def stamp(self) -> str:
        """Changes when a file of a run does."""
        places = [Path(folder) for folder in self.folders]
        places += [inner for place in places for inner in place.iterdir() if inner.is_dir()]
        files = [path.stat() for place in places for name in FILES if (path := place / name).is_file()]
        size = sum(file.st_size for file in files)  # a clock of files ticks in milliseconds
        return f"{max((file.st_mtime_ns for file in files), default=0)}-{size}"

    def current(self) -> tuple[Book, str]:
        """The book and its version, at most some seconds old."""
        with self.lock:
            if time.monotonic() >= self.next and self.stamp() != self.version:
                self.read()
            return self.book, self.version


def query_of(text: str) -> tuple[Query, set[int]]:
    """The query of an address, and the runs that it is about."""
    given = {name: values[-1] for name, values in parse_qs(text).items()}
    numbers = {name: [int(n) for n in given.get(name, "").split(",") if n] for name in ("bars", "runs")}
    step = float(given["step"]) if given.get("step") else None
    texts = {name: given[name] for name in ("text", "by", "order") if given.get(name)}
    offset = int(given.get("offset", 0))
    return Query(**texts, step=step, bars=frozenset(numbers["bars"]), offset=offset), set(numbers["runs"])


class Handler(BaseHTTPRequestHandler):
    """`/`: the page; `/data?since=VERSION`: what it draws, or nothing new; `/samples?...`: what a query finds."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer; a name that is not this machine's own is refused, so that no other page can read along."""
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            return self.answer(403, "text/plain", "This server answers to 127.0.0.1 and localhost.")
        address = urlsplit(self.path)
        try:
            book, version = self.server.shelf.current()
            if address.path == "/":
                return self.answer(200, "text/html", render(book, version))
            if address.path == "/data":
                if f"since={version}" == address.query:
                    return self.answer(204, "application/json", "")
                return self.answer_data(payload(book, version))
            if address.path == "/samples":
                query, runs = query_of(address.query)
                return self.answer_data(find([row for r in sorted(runs) for row in book.samples[r]], query))
        except (ValueError, IndexError, TypeError, StropError, OSError) as error:
            return self.answer(400, "text/plain", visible(str(error)))
        self.answer(404, "text/plain", "There is /, /data and /samples.")

    def answer_data(self, data: Any) -> None:
        self.answer(200, "application/json", visible(json.dumps(data, ensure_ascii=False, allow_nan=False)))

    def answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the user."""


class Server(ThreadingHTTPServer):
    """Answers to this machine alone."""

    daemon_threads = True

    def __init__(self, folders: Sequence[str | Path], port: int = 0) -> None:
        self.shelf = Shelf(folders)
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise SetupError(
                f"Port {port} cannot be served on: {error.strerror}. Give another one: --port 0 takes a free one."
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"
