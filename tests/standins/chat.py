"""A chat endpoint in a thread: OpenAI's form of request and reply, and the faults a real one has."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = int | str | tuple[int, dict[str, str], str]
"""A status; hang, drop, drip, html, list, other, null or huge; or a status with headers and a body."""


@dataclass
class StandInChat:
    """Replies with `reply(prompt)`; each request uses up the next of `faults`, None being a good one."""

    reply: Callable[[str], str] = lambda prompt: "50"
    faults: list[Fault | None] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most: int = 0
    """The most requests that were under way together."""
    pause: float = 0.0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _under_way: int = 0
    release: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    chat: StandInChat
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_POST(self) -> None:
        chat = self.chat
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat._lock:
            chat._under_way += 1
            chat.most = max(chat.most, chat._under_way)
            chat.paths.append(self.path)
            chat.bodies.append(body)
            chat.headers.append({k.lower(): v for k, v in self.headers.items()})
            chat.prompts.append(body["messages"][-1]["content"])
            fault = chat.faults.pop(0) if chat.faults else None
        time.sleep(chat.pause)
        with chat._lock:  # before the answer: whoever has it may ask again at once
            chat._under_way -= 1
        self._answer(fault, body["messages"][-1]["content"])

    do_GET = do_POST

    def _answer(self, fault: Fault | None, prompt: str) -> None:
        if isinstance(fault, tuple):
            self._send(*fault)
        elif isinstance(fault, int):
            self._send(fault, {}, json.dumps({"error": {"message": f"trouble number {fault}", "type": "x"}}))
        elif fault == "hang":
            self.chat.release.wait(30)
            self.close_connection = True
        elif fault == "drop":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif fault == "drip":
            self._drip()
        else:
            self._send(200, {}, self._body(fault, prompt))

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        try:
            for _ in range(60):  # three seconds, so that a client without patience fails rather than hangs
                if self.chat.release.wait(0.05):
                    break
                self.wfile.write(b" ")
                self.wfile.flush()
        except OSError:  # the client is gone
            pass
        self.close_connection = True

    def _body(self, fault: str | None, prompt: str) -> str:
        odd = {"html": "<html>not here</html>", "list": "[1, 2]", "other": '{"id": "x"}', "huge": " " * (2 << 20)}
        if fault in odd:
            return odd[fault]
        content = None if fault == "null" else self.chat.reply(prompt)
        message = {"role": "assistant", "content": content}
        return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:  # the client had read enough
            self.close_connection = True


@contextmanager
def chatting(*faults: Fault | None, reply: Callable[[str], str] = lambda prompt: "50") -> Iterator[StandInChat]:
    """Run an endpoint on a free local port."""
    chat = StandInChat(reply, list(faults))
    handler = type("Handler", (_Handler,), {"chat": chat})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        chat.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
