"""The client of chat endpoints, against a stand-in: what is sent, what is retried, and one line for what goes wrong."""

from __future__ import annotations

import socket
import time

import pytest
from tests.standins.chat import Fault, chatting

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.insight import endpoint
from finetwo.insight.endpoint import Endpoint, check_url

KEY = "sk-test-0123456789"
ASK = [{"role": "user", "content": "how well?"}]


@pytest.fixture(autouse=True)
def no_key_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)


def ask(url: str, timeout: float = 5.0) -> str:
    return Endpoint(url, "grader", timeout).complete(ASK, 77)


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # no proxy stands between this machine and itself
    with chatting(reply=lambda prompt: f"heard: {prompt}") as chat:
        assert ask(chat.url) == "heard: how well?"
    assert chat.paths == ["/v1/chat/completions"]
    assert chat.bodies == [{"model": "grader", "messages": ASK, "temperature": 0, "max_tokens": 77}]
    assert chat.headers[0]["authorization"] == f"Bearer {KEY}"
    assert chat.headers[0]["content-type"] == "application/json"


def test_without_a_key_none_is_sent() -> None:
    with chatting() as chat:
        ask(chat.url)
    assert "authorization" not in chat.headers[0]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("http://h:1/v1", "/v1/chat/completions"),
        ("http://h:1/v1/", "/v1/chat/completions"),
        ("http://h:1", "/v1/chat/completions"),
        ("https://h/api/openai/v1/chat/completions", "/api/openai/v1/chat/completions"),
        ("http://h/proxy?version=1#x", "/proxy/chat/completions"),
    ],
)
def test_a_base_url_is_completed(given: str, path: str) -> None:
    assert check_url(given).path == path


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("localhost:8000/v1", "must be the http or https URL"),
        ("ftp://h/v1", "must be the http or https URL"),
        ("file:///etc/passwd", "must be the http or https URL"),
        ("http://", "must be the http or https URL"),
        ("http://h/v 1", "must be the http or https URL"),
        ("http://h:port/v1", "is not a URL"),
        ("http://[::1/v1", "is not a URL"),
        ("http://me:secret@h/v1", "holds a name or a password"),
    ],
)
def test_what_is_no_endpoint_is_refused(url: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        Endpoint(url, "grader", 1.0)
    assert "secret" not in caught.value.line()


@pytest.mark.parametrize("faults", [(500,), (429, 503, 502), ((429, {"Retry-After": "0"}, "slow down"),)])
def test_a_busy_server_is_asked_again(faults: tuple[Fault, ...]) -> None:
    with chatting(*faults, reply=lambda _: "fine") as chat:
        assert ask(chat.url) == "fine"
    assert len(chat.paths) == len(faults) + 1


def test_the_pause_grows_and_heeds_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint, "PAUSE", 1.0)
    monkeypatch.setattr(endpoint, "sleep", pauses.append)
    again: list[Fault] = [500, (429, {"Retry-After": "7"}, ""), (429, {"Retry-After": "9999"}, ""), 500]
    again.append((503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, ""))
    with chatting(*again) as chat:
        ask(chat.url)
    assert pauses == [1.0, 7.0, 60.0, 8.0, 16.0]


def test_a_server_that_stays_broken_is_given_up() -> None:
    with chatting(*[500] * 20) as chat, pytest.raises(EnvironmentFault) as caught:
        ask(chat.url)
    assert len(chat.paths) == endpoint.TRIES
    assert "HTTP 500: trouble number 500, 6 times in a row" in caught.value.line()
    assert "\n" not in caught.value.line()


REFUSALS: list[tuple[Fault, str, str]] = [
    (401, "HTTP 401: trouble number 401", "set OPENAI_API_KEY"),
    (403, "HTTP 403", "set OPENAI_API_KEY"),
    (404, "HTTP 404: trouble number 404", "the model's name and the URL"),
    ((400, {}, '{"detail": "no such field"}'), "HTTP 400: no such field", "check"),
    ((400, {}, '"plain"'), "HTTP 400: plain", "check"),
    ((422, {}, "<html><h1>no</h1></html>"), "HTTP 422", "check"),
    ((302, {"Location": "http://elsewhere.test/v1"}, ""), "sends on to http://elsewhere.test/v1", "that URL itself"),
    ((308, {}, ""), "sends on to nowhere", "that URL itself"),
    ("html", "the reply is no chat completion (got <html>not here</html>)", "OpenAI-compatible"),
    ("list", "the reply is no chat completion", "OpenAI-compatible"),
    ("other", "the reply is no chat completion", "OpenAI-compatible"),
    ("huge", "the reply is no chat completion (got more than 1,048,576 bytes)", "OpenAI-compatible"),
    ((200, {}, ""), "the reply is no chat completion (got nothing)", "OpenAI-compatible"),
    ((200, {}, '{"choices": [{"message": {"content": [1]}}]}'), "the reply is no chat completion", "OpenAI"),
]


@pytest.mark.parametrize(("fault", "what", "fix"), REFUSALS, ids=[str(f)[:30] for f, _, _ in REFUSALS])
def test_a_refusal_is_one_line_and_not_repeated(fault: Fault, what: str, fix: str) -> None:
    with chatting(fault) as chat, pytest.raises(InputError) as caught:
        ask(chat.url)
    assert len(chat.paths) == 1
    line = caught.value.line()
    assert line.startswith(f"--judge {chat.url}/chat/completions: ")
    assert what in line
    assert fix in line.split("Fix: ")[1]
    assert "\n" not in line


def test_an_answer_without_text_is_empty() -> None:
    with chatting("null") as chat:
        assert ask(chat.url) == ""


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_never_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    echo: Fault = (status, {}, f'{{"error": {{"message": "bad key {KEY}!"}}}}')
    with chatting(*[echo] * 9) as chat, pytest.raises(FineTwoError) as caught:
        ask(chat.url)
    assert "bad key ***!" in caught.value.line()
    assert KEY not in caught.value.line() + repr(vars(caught.value))


def test_a_key_stays_here_when_the_way_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain http to another machine: whoever listens could read it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Endpoint("http://elsewhere.test/v1", "m", 1.0).keeps_key
    for safe in ("https://elsewhere.test/v1", "http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:1/v1"):
        assert not Endpoint(safe, "m", 1.0).keeps_key
    with chatting() as chat:  # as if 127.0.0.1 were another machine
        monkeypatch.setattr(endpoint, "_is_local", lambda host: False)
        ask(chat.url)
        assert "authorization" not in chat.headers[0]
        chat.faults.append(401)
        with pytest.raises(InputError, match="Fix: give an https URL"):
            ask(chat.url)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY: holds") as caught:
        Endpoint("http://localhost/v1", "m", 1.0)
    assert key not in caught.value.line()


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EnvironmentFault, match=r"no connection: Connection refused.*start the server"):
            ask(url)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_server_that_never_answers(fault: str) -> None:
    start = time.monotonic()
    with chatting(fault) as chat, pytest.raises(EnvironmentFault, match=r"no answer within 0\.3 seconds.*--judge_time"):
        ask(chat.url, timeout=0.3)
    assert time.monotonic() - start < 3


def test_half_an_answer_is_no_answer() -> None:
    with chatting("drop") as chat, pytest.raises(EnvironmentFault, match="the connection broke"):
        ask(chat.url)


@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_a_server_that_answered_before_is_asked_again(fault: str) -> None:
    with chatting(None, fault, reply=lambda _: "fine") as chat:
        client = Endpoint(chat.url, "grader", 0.5)
        assert client.complete(ASK, 1) == client.complete(ASK, 1) == "fine"
        assert len(chat.paths) == 3
        chat.faults += [fault] * 9
        if fault == "drop":
            with pytest.raises(EnvironmentFault, match="the connection broke: IncompleteRead, 6 times in a row"):
                client.complete(ASK, 1)


def test_a_query_is_kept_and_not_shown() -> None:
    with chatting(404) as chat, pytest.raises(InputError) as caught:
        ask(f"{chat.url}?token=hush")
    assert chat.paths == ["/v1/chat/completions?token=hush"]
    assert "hush" not in caught.value.line()
