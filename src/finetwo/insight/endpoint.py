"""A client of OpenAI-compatible chat endpoints, on the standard library alone.

It knows messages and nothing of what they are for. Its invariants: the key is taken from the environment, sent over
https or within this machine only, and never shown; a server cannot lead elsewhere; every failure is one line.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import urllib.error
import urllib.request
from time import monotonic, sleep
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit, urlunsplit

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError, shown
from finetwo.core.strict_json import parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES = 6
"""Requests made in all before a server that is busy or broken is given up."""
PAUSE = 1.0
"""Seconds before the second try; each further pause is twice as long."""
_LONGEST_PAUSE = 60.0
_MAX_REPLY = 1 << 20
_PATH = "/chat/completions"


class _Again(Exception):
    """A failure that may pass; `after` is the pause in seconds that the server asked for, if it did."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the texts and the key are for the named server only."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Never."""
        return


class Endpoint:
    """One model behind one URL, asked for one message at a time; safe to use from several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        timeout: float,
        *,
        option: str = "--judge",
        timeout_option: str = "--judge_timeout",
    ) -> None:
        """`url`: of the endpoint or its base (.../v1); `timeout`: seconds for one answer.

        `option` and `timeout_option` are what messages call the URL and the timeout. Raises InputError for what is no
        such URL, or a key that cannot be.
        """
        parts = check_url(url, option)
        self._option, self._timeout_option = option, timeout_option
        self.model, self.timeout = model, timeout
        self._url = urlunsplit(parts)
        self.place = urlunsplit(parts._replace(query=""))
        """The URL as it may be shown: a query may hold secrets."""
        local = _is_local(parts.hostname or "")
        self._key = _key()
        self.keeps_key = bool(self._key) and parts.scheme != "https" and not local
        """Whether a key is there that is not sent, the way being open to be read."""
        if self.keeps_key:
            self._key = ""
        proxies = [urllib.request.ProxyHandler({})] if local else []
        self._opener = urllib.request.build_opener(_Stay(), *proxies)
        self._reached = False

    @property
    def _where(self) -> str:
        return f"{self._option} {self.place}"

    def complete(self, messages: list[dict[str, str]], max_tokens: int, **settings: Any) -> str:
        """Return the text of the model's answer (empty if it has none), at temperature 0 unless `settings` say else.

        A busy or failing server (429, 5xx) is asked again up to `TRIES` times; so is a broken connection once the
        server has answered before.

        Raises:
            InputError: the server refuses the request, or is none of this kind.
            EnvironmentFault: no connection, no answer in time, or still busy at the last try.
        """
        content = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        body = json.dumps(content | settings).encode("utf-8")
        tries = 0
        while True:
            try:
                text = self._once(body)
            except _Again as again:
                tries += 1
                if tries == TRIES:
                    what = f"{again}, {TRIES} times in a row"
                    raise EnvironmentFault(self._where, what, None, "try again later") from None
                pause = PAUSE * 2 ** (tries - 1) if again.after is None else again.after
                sleep(min(pause, _LONGEST_PAUSE))
            else:
                self._reached = True
                return text

    def _once(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "finetwo"}
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        deadline = monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._content(self._read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        except (OSError, http.client.HTTPException) as error:
            fault = self._unreachable(error)
            if self._reached:
                raise _Again(fault.what) from None
            raise fault from None

    def _read(self, response: Any, deadline: float) -> bytes:
        data = b""
        while piece := response.read1(1 << 16):
            data += piece
            if len(data) > _MAX_REPLY:
                raise self._alien(f"more than {_MAX_REPLY:,} bytes")
            if monotonic() > deadline:
                raise TimeoutError
        if response.length:
            raise http.client.IncompleteRead(data, response.length)
        return data

    def _content(self, data: bytes) -> str:
        """The answer's text in a chat completion."""
        try:
            content = parse_json(data.decode("utf-8"), "")["choices"][0]["message"]["content"]
        except (FineTwoError, UnicodeDecodeError, KeyError, IndexError, TypeError):
            raise self._alien(data.decode("utf-8", "replace")) from None
        if content is not None and not isinstance(content, str):
            raise self._alien(content)
        return content or ""

    def _alien(self, got: object) -> InputError:
        fix = f"give the URL of an OpenAI-compatible endpoint, ending in /v1 or in {_PATH}"
        return InputError(self._where, "the reply is no chat completion", self._clean(str(got)) or "nothing", fix)

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        """Raise what an HTTP status other than success means."""
        message = self._clean(_message(error))
        status = f"HTTP {error.code}" + (f": {message}" if message else "")
        if error.code == 429 or error.code >= 500:
            raise _Again(status, _seconds(error.headers.get("Retry-After"))) from None
        if error.code < 400:
            target = self._clean(error.headers.get("Location") or "nowhere")
            raise InputError(self._where, f"HTTP {error.code}: it sends on to {target}", None, "give that URL itself")
        fix = "check the model's name and the URL"
        if error.code in (401, 403):
            fix = f"set {KEY_VARIABLE} to a key that this server takes"
            if self.keeps_key:
                fix = "give an https URL: the key is not sent over plain http to another machine"
        raise InputError(self._where, status, None, fix) from None

    def _unreachable(self, error: Exception) -> EnvironmentFault:
        """The fault behind a connection that failed, broke or stayed silent."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            what, fix = (
                f"no answer within {self.timeout:g} seconds",
                f"raise {self._timeout_option}, or look at the server",
            )
        elif isinstance(reason, ssl.SSLError):
            what, fix = (
                f"no secure connection: {getattr(reason, 'verify_message', '') or reason.reason}",
                "check the URL",
            )
        elif isinstance(reason, socket.gaierror):
            what, fix = f"no such host: {reason.strerror}", "check the URL and the network"
        elif isinstance(reason, OSError) and reason.strerror:
            what, fix = f"no connection: {reason.strerror}", "start the server, or check the URL"
        else:
            what, fix = f"the connection broke: {type(reason).__name__}", "look at the server, or check the URL"
        return EnvironmentFault(self._where, self._clean(what), None, fix)

    def _clean(self, text: str) -> str:
        """A short printable line of what a server said, the key blackened should it be in there."""
        if self._key:
            text = text.replace(self._key, "***")
        return shown(text.strip(), 200)


def check_url(url: str, option: str = "--judge") -> SplitResult:
    """Return the parts of an endpoint's URL, completed to .../chat/completions; InputError for what is no such URL."""
    fix = "for example http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except (ValueError, UnicodeError) as error:
        raise InputError(option, f"is not a URL: {error}", url, fix) from None
    if parts.username is not None or parts.password is not None:
        raise InputError(option, "holds a name or a password", None, f"leave it out; a key goes into {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not host or any(c <= " " or c > "~" for c in url):
        raise InputError(option, "must be the http or https URL of an endpoint", url, fix)
    path = parts.path.rstrip("/")
    if not path.endswith(_PATH):
        path = (path or "/v1") + _PATH
    return parts._replace(path=path, fragment="")


def _key() -> str:
    """The key from the environment; InputError for one that no header can hold, without showing it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if any(c <= " " or c > "~" for c in key):
        raise InputError(KEY_VARIABLE, "holds white space or other characters that no key has", None, "set it anew")
    return key


def _is_local(host: str) -> bool:
    """Whether a host name means this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _message(error: urllib.error.HTTPError) -> str:
    """What a server said about an error, in the OpenAI form or any other."""
    try:
        text = error.read(1 << 14).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        content = parse_json(text, "")
    except FineTwoError:
        return "" if text.lstrip().startswith("<") else text
    inner = content.get("error", content) if isinstance(content, dict) else content
    message = inner.get("message", inner.get("detail")) if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else text


def _seconds(text: str | None) -> float | None:
    """The pause of a Retry-After header in seconds; None where there is none, or a date."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 9 else None
