"""A model hub in a thread: enough of its protocol for huggingface_hub, and the faults a real one has."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_LARGE = (".safetensors", ".bin", ".parquet")
"""What a hub keeps outside git, by its SHA-256."""


@dataclass
class StandInHub:
    """Repositories by name (a data set's is datasets/owner/name); `faults` maps a file (or "api") to what goes wrong.

    A status such as 404 or 500; "drop": the connection breaks once, half-way; "dead": always; "wrong": other bytes.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, int | str] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    url: str = ""

    def served(self) -> list[str]:
        """The files whose content was asked for."""
        return [path.rpartition("/")[2] for verb, path in self.log if verb == "GET" and "/resolve/" in path]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, verb: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((verb, path))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.append(token)
        if path.startswith(("/api/models/", "/api/datasets/")):
            whole = path.removeprefix("/api/").removeprefix("models/")
            repo, _, revision = whole.partition("/revision/")
            self._info(repo, revision)
        elif "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._file(verb, repo, revision, name)
        else:
            self._send(verb, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def _known(self, verb: str, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self._send(verb, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("", "main", "v1", "refs/convert/parquet", COMMIT):
            self._send(verb, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def _info(self, repo: str, revision: str) -> None:
        if (status := self.hub.faults.get("api")) is not None:
            self._send("GET", int(status), b"{}", {})
        elif self._known("GET", repo, revision):
            siblings = [self._sibling(name, data) for name, data in self.hub.repos[repo].items()]
            body = {
                "id": repo.removeprefix("datasets/"),
                "modelId": repo,
                "sha": COMMIT,
                "tags": [],
                "private": False,
                "siblings": siblings,
            }
            self._send("GET", 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _sibling(name: str, data: bytes) -> dict[str, object]:
        sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": _blob_id(data)}
        if name.endswith(_LARGE):
            sibling["lfs"] = {"sha256": _sha256(data), "size": len(data), "pointerSize": 130}
        return sibling

    def _file(self, verb: str, repo: str, revision: str, name: str) -> None:
        if not self._known(verb, repo, revision):
            return
        files, trouble = self.hub.repos[repo], self.hub.faults.get(name)
        if name not in files or trouble == 404:
            self._send(verb, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        if isinstance(trouble, int):
            self._send(verb, trouble, b"", {})
            return
        data = files[name]
        etag = _sha256(data) if name.endswith(_LARGE) else _blob_id(data)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if trouble == "wrong":
            data = bytes(b ^ 1 for b in data)
        self._body(verb, name, data, headers)

    def _body(self, verb: str, name: str, data: bytes, headers: dict[str, str]) -> None:
        start, status = 0, 200
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"], status = f"bytes {start}-{len(data) - 1}/{len(data)}", 206
        trouble = self.hub.faults.get(name)
        if verb == "GET" and trouble in ("drop", "dead"):
            if trouble == "drop":
                del self.hub.faults[name]
            self._send(verb, status, data[start : len(data) // 2], headers, announced=len(data) - start)
            self.close_connection = True
            return
        self._send(verb, status, data[start:], headers)

    def _send(
        self, verb: str, status: int, body: bytes, headers: Mapping[str, str], announced: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        if verb == "GET":
            self.wfile.write(body)


@contextmanager
def serving(**repos: dict[str, bytes]) -> Iterator[StandInHub]:
    """Run a hub on a free local port; its faults and repositories may be changed while it runs."""
    hub = StandInHub(dict(repos))
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
