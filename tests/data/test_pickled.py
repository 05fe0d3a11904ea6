"""Pickles: plain ones come through exactly, hostile ones get one line and leave no trace."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections import Counter, OrderedDict
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetwo.core.errors import FineTwoError, InputError
from finetwo.data import pickled
from finetwo.data.pickled import is_pickle, read_pickle

CHILD = Path(pickled.__file__).with_name("pickle_child.py")


def load_child() -> ModuleType:
    """The program as a module of this process, without its walls."""
    spec = importlib.util.spec_from_file_location("pickle_child_under_test", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, value: object, protocol: int = 4) -> Path:
    path = folder / "a.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def read(path: Path, part: str | None = None, notes: list[str] | None = None) -> list[dict[str, object]]:
    return list(read_pickle(path, part, [].append if notes is None else notes.append))


def refusal(path: Path, part: str | None = None) -> str:
    with pytest.raises(FineTwoError) as caught:
        read(path, part)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line.replace(str(path), path.name)


# --- what is plain ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_plain_records_come_back_exactly(tmp_path: Path, protocol: int) -> None:
    records = [
        {"sentence": "It is a truth é\u2028\U0001f600\n\x00"},
        {"a": 1, "b": -(10**30), "c": 1.5, "d": True, "e": None, "f": ["x", {"y": "z"}], "": ""},
    ]
    assert read(write(tmp_path, records, protocol)) == records
    assert read(write(tmp_path, tuple(records), protocol)) == records


def test_texts_columns_and_parts(tmp_path: Path) -> None:
    assert read(write(tmp_path, ["a", "b"])) == [{"text": "a"}, {"text": "b"}]
    columns = {"text": ["a", "b"], "label": (0, 1)}
    assert read(write(tmp_path, columns)) == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    splits = {"train": [{"t": "a"}], "test": columns}
    path = write(tmp_path, splits)
    assert read(path, "train") == [{"t": "a"}]
    assert read(path, "test") == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert "there is no part 'dev': train, test" in refusal(path, "dev")
    assert "a dictionary" in refusal(path)
    assert "it holds no dictionary" in refusal(write(tmp_path, ["a"]), "dev")
    nested = {"train": [{"t": "a"}], "test": [{"t": "b"}]}
    assert "a dictionary of several lists, not one list of records: train, test" in refusal(write(tmp_path, nested))


def test_tuples_become_lists_and_nan_null(tmp_path: Path) -> None:
    notes: list[str] = []
    path = write(tmp_path, [{"a": (1, (2,)), "b": float("nan"), "c": [float("inf")]}])
    assert read(path, None, notes) == [{"a": [1, [2]], "b": None, "c": [None]}]
    assert notes == [f"{path}: 2 numbers that are NaN or infinite became null"]


def test_what_python_2_wrote(tmp_path: Path) -> None:
    assert read(write(tmp_path, b"\x80\x02]q\x01}q\x02U\x04textq\x03U\x02hiq\x04sa.")) == [{"text": "hi"}]
    assert read(write(tmp_path, b"(lp0\n(dp1\nS'text'\np2\nS'hi'\np3\nsa.")) == [{"text": "hi"}]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=4), st.sampled_from(range(6)))
def test_the_program_writes_what_json_would(records: list[dict[str, Any]], protocol: int) -> None:
    child = load_child()
    import io

    out = io.BytesIO()
    assert child.write(pickle.dumps(records, protocol), None, out) == 0
    assert out.getvalue().decode() == "".join(json.dumps(record) + "\n" for record in records)


# --- what is hostile -------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


class State:
    """Pickles as an object with a state."""

    def __init__(self) -> None:
        self.x = 1


def bomb(levels: int) -> object:
    value: object = "x" * 100
    for _ in range(levels):
        value = [value, value]
    return value


def circle() -> list[object]:
    record: dict[str, object] = {}
    record["again"] = [record]
    return [record]


def hostile(canary: str) -> dict[str, tuple[bytes, str]]:
    """Files by what they try, with what must be said; whatever runs would make the canary."""
    touch = f"touch {canary}"
    line = touch.encode()
    short = b"X" + len(line).to_bytes(4, "little") + line
    posix = b"\x8c\x05posix\x8c\x06system"
    return {
        "reduce, protocol 0": (pickle.dumps(Call(os.system, touch), 0), "GLOBAL posix system"),
        "reduce, protocol 4": (pickle.dumps([{"a": "b"}, Call(os.system, touch)], 4), "STACK_GLOBAL posix system"),
        "eval": (pickle.dumps(Call(eval, f"open({canary!r}, 'w')"), 2), "GLOBAL __builtin__ eval"),
        "exec deep inside": (pickle.dumps([{"a": [{"b": Call(exec, "x = 1")}]}], 5), "STACK_GLOBAL builtins exec"),
        "open": (pickle.dumps(Call(open, canary, "w"), 4), "STACK_GLOBAL"),
        "getattr chain": (pickle.dumps(Call(getattr, "x", "upper"), 3), "GLOBAL builtins getattr"),
        "subprocess": (pickle.dumps(Call(subprocess.Popen, ["touch", canary]), 4), "STACK_GLOBAL subprocess Popen"),
        "inst": (b"(S'" + line + b"'\nios\nsystem\n.", "INST os system"),
        "obj": (b"(cos\nsystem\nS'" + line + b"'\no.", "GLOBAL os system"),
        "obj without a name": (b"(" + short + b"o.", "OBJ"),
        "global": (b"cos\nsystem\n(S'" + line + b"'\ntR.", "GLOBAL os system"),
        "stack global": (b"\x80\x04" + posix + b"\x93" + short + b"\x85R.", "STACK_GLOBAL posix system"),
        "newobj": (pickle.dumps([State()], 2), "GLOBAL"),
        "newobj_ex": (b"\x80\x04})}\x92.", "NEWOBJ_EX"),
        "build": (b"\x80\x02}}b.", "BUILD"),
        "reduce alone": (b"\x80\x02))R.", "REDUCE"),
        "ext1": (b"\x80\x02\x82\x01.", "EXT1 1"),
        "ext2": (b"\x80\x02\x83\x01\x01.", "EXT2 257"),
        "ext4": (b"\x80\x02\x84\x01\x00\x00\x01.", "EXT4"),
        "persistent id": (b"Pcanary\n.", "PERSID canary"),
        "binary persistent id": (b"\x80\x02" + short + b"Q.", "BINPERSID"),
        "after the end": (pickle.dumps([{"a": "b"}], 2) + pickle.dumps(Call(os.system, touch), 2), "more follows"),
        "set": (pickle.dumps([{"a": {1}}], 4), "EMPTY_SET"),
        "frozen set": (pickle.dumps([{"a": frozenset([1])}], 4), "FROZENSET"),
        "bytes": (pickle.dumps([{"a": b"x"}], 4), "holds bytes"),
        "bytearray": (pickle.dumps([{"a": bytearray(b"x")}], 5), "holds bytes"),
        "a class of the standard library": (
            pickle.dumps([OrderedDict(a=1)], 4),
            "STACK_GLOBAL collections OrderedDict",
        ),
        "a counter": (pickle.dumps([Counter("a")], 2), "GLOBAL collections Counter"),
        "a date": (pickle.dumps([{"a": date(2020, 1, 1)}], 4), "STACK_GLOBAL datetime date"),
        "a function": (pickle.dumps([{"a": len}], 4), "STACK_GLOBAL builtins len"),
        "complex": (pickle.dumps([{"a": 1j}], 4), "STACK_GLOBAL builtins complex"),
        "huge memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "LONG_BINPUT to place 2,147,483,647 of a file of 9 bytes"),
        "huge memo in text": (b"(lp99999999999\n.", "PUT to place 99,999,999,999"),
        "huge frame": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].", "damaged"),
        "huge text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc.", "only 4 remain"),
        "negative length": (b"\x80\x02T\xff\xff\xff\xff.", "damaged"),
        "huge number": (b"(lI" + b"9" * 10_000 + b"\na.", "damaged"),
        "memo of nothing": (b"\x80\x02h\x07.", "damaged"),
        "empty stack": (b"\x80\x04a.", "damaged"),
        "no end": (b"\x80\x04]", "damaged"),
        "cut off": (pickle.dumps([{"a": "b" * 100}], 4)[:-20], "damaged"),
        "unknown opcode": (b"\x80\x04\xff.", "unknown"),
        "newer protocol": (b"\x80\x09].", "damaged"),
        "billion laughs": (pickle.dumps([{"a": bomb(40)}], 2), "record 1: too large"),
        "one record many times": (pickle.dumps([{"a": "y" * 100_000}] * 4000, 2), "unpacks to more than 100:1"),
        "within itself": (pickle.dumps(circle(), 2), "nested deeper than 60 levels, or within itself"),
        "deep": (b"\x80\x02]}X\x01\x00\x00\x00a" + b"]" * 90_000 + b"a" * 89_999 + b"sa.", "nested deeper"),
        "number as a name": (pickle.dumps([{1: "a"}]), "record 1: the name of a field must be text, got 1"),
        "no records": (pickle.dumps("text"), "str, not a list of records"),
        "numbers": (pickle.dumps([1, 2]), "record 1: int, not a dictionary or a text"),
        "nothing": (pickle.dumps([]), "0 records"),
        "half a character": (pickle.dumps([{"a": "\ud800"}]), "lone surrogate"),
    }


CASES = list(hostile(""))


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_are_refused_and_do_nothing(case: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content, said = hostile(str(canary))[case]
    assert said in refusal(write(tmp_path, content))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pkl"]


def test_the_corpus_is_live(tmp_path: Path) -> None:
    """The files that name code would run it, were they loaded."""
    canary = tmp_path / "canary"
    for case in ("reduce, protocol 0", "reduce, protocol 4", "inst", "global", "stack global", "obj"):
        pickle.loads(hostile(str(canary))[case][0])
        assert canary.exists(), case
        canary.unlink()


@pytest.mark.parametrize("case", [c for c in CASES if "GLOBAL" in hostile("")[c][1] or c in ("inst", "persistent id")])
def test_the_unpickler_refuses_also_without_the_scan(case: str, tmp_path: Path) -> None:
    import io

    child = load_child()
    canary = tmp_path / "canary"
    with pytest.raises(child.Refused, match=r"it names"):
        child._Plain(io.BytesIO(hostile(str(canary))[case][0]), encoding="utf-8").load()
    assert not canary.exists()


TRIES = {
    "open": "open('canary', 'w')",
    "read": "open('/etc/passwd')",
    "socket": "socket.socket()",
    "pair": "socket.socketpair()",
    "fork": "os.fork()",
    "pipe": "os.pipe()",
    "system": "os.system('touch canary')",
    "run": "subprocess.run(['touch', 'canary'])",
    "remove": "os.remove('here')",
    "rename": "os.rename('here', 'canary')",
    "folder": "os.mkdir('canary')",
    "link": "os.symlink('here', 'canary')",
    "list": "os.listdir('/')",
    "kill": "os.kill(os.getppid(), 0)",
    "exec": "os.execv('/bin/touch', ['touch', 'canary'])",
    "spawn": "os.posix_spawn('/bin/touch', ['touch', 'canary'], {})",
    "import": "__import__('wave')",
    "compile": "eval('1')",
    "ctypes": "ctypes.CDLL(None)",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
}


def walled(folder: Path, walls: str, tries: dict[str, str]) -> dict[str, str]:
    """Run expressions behind some walls of the program and return what came of each, by name."""
    program = f"""
        import ctypes, importlib.util, json, os, resource, socket, subprocess, sys
        spec = importlib.util.spec_from_file_location("child", {str(CHILD)!r})
        child = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(child)
        calls = {{name: eval("lambda: " + text) for name, text in {tries!r}.items()}}
        json.dumps([1])
        {walls}
        found = {{}}
        for name, call in calls.items():
            try:
                call()
                found[name] = "done"
            except BaseException as error:
                found[name] = type(error).__name__
        os.write(1, json.dumps(found).encode())
        os._exit(0)
    """
    (folder / "here").write_text("x")
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    result: dict[str, str] = json.loads(done.stdout)
    return result


def test_the_hook_alone_stops_whatever_acts(tmp_path: Path) -> None:
    found = walled(tmp_path, "sys.addaudithook(child._refuse_event)", TRIES)
    # the interpreter tells the hook nothing of a pipe; the limits keep that off
    assert {name for name, what in found.items() if what != "Refused"} == {"pipe"}
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_the_limits_alone_leave_no_file_and_no_socket(tmp_path: Path) -> None:
    tries = {name: TRIES[name] for name in ("open", "read", "socket", "pair", "pipe")}
    found = walled(tmp_path, "child._limit(100)", tries)
    assert set(found.values()) == {"OSError"}
    assert not (tmp_path / "canary").exists()
    assert walled(tmp_path, "child._limit(100)", {"memory": "bytearray(1 << 31)"}) == {"memory": "MemoryError"}


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are of Linux")
def test_the_network_is_left_where_the_kernel_permits_it(tmp_path: Path) -> None:
    program = "print(os.readlink('/proc/self/ns/net'))"
    code = f"import os, sys, importlib.util\nspec = importlib.util.spec_from_file_location('c', {str(CHILD)!r})\n"
    code += "c = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(c)\n"
    code += f"{program}\nc._leave_network()\n{program}\nprint(len(open('/proc/self/net/dev').read().splitlines()) - 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, interfaces = done.stdout.split()
    if before == after:
        pytest.skip("the kernel does not permit it here; the hook and the limits stand for it")
    assert interfaces == "1", "only the loop of an empty network"


# --- the process -----------------------------------------------------------------------------------------------------


def test_the_process_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "verysecret")
    given: dict[str, Any] = {}
    start = subprocess.Popen

    def spy(command: list[str], **options: Any) -> Any:
        given.update(options, command=command)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    assert read(write(tmp_path, ["a"])) == [{"text": "a"}]
    assert given["env"] == {}
    assert given["start_new_session"]
    assert not Path(given["cwd"]).exists(), "the folder is gone with the process"
    assert given["command"][1:4] == ["-I", "-S", "-B"]


def test_a_reader_that_stops_early_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def spy(*arguments: Any, **options: Any) -> Any:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    records = read_pickle(write(tmp_path, [{"a": "x" * 1000}] * 20_000), None, print)
    assert next(records) == {"a": "x" * 1000}
    records.close()  # type: ignore[attr-defined]
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "more memory or time than a file of its size may"),
        ("print('{\"a\": 1}', end='', flush=True); import os; os.kill(os.getpid(), 9)", "more memory or time"),
        ("raise RuntimeError('boom')", "the reading process failed: RuntimeError: boom"),
        ("print('[1]')", "a list where a record"),
        ("print('{\"a\": NaN}')", "NaN is not a JSON value"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "not UTF-8"),
    ],
)
def test_what_the_process_says_is_not_trusted(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle_child.py").write_text(program)
    monkeypatch.setattr(pickled, "__file__", str(tmp_path / "pickled.py"))
    with pytest.raises(FineTwoError) as caught:
        read(write(tmp_path, ["a"]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_sides_agree_on_the_code() -> None:
    assert load_child().REFUSED == pickled._REFUSED


def test_files_that_only_look_like_pickles(tmp_path: Path) -> None:
    for content, said in (
        (b"PK\x03\x04rest", "an archive, but not as torch.save writes them"),
        (b"\x93NUMPY\x01\x00", "not a pickle: an array of numpy"),
        (b"\x1f\x8brest", "packed as gzip: unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
        (b"", "the file is empty"),
    ):
        assert said in refusal(write(tmp_path, content))
    with pytest.raises(InputError, match="not a regular file"):
        is_pickle(tmp_path)
    (tmp_path / "b.what").write_bytes(pickle.dumps(["a"]))
    assert is_pickle(tmp_path / "b.what")
    (tmp_path / "c.what").write_text("a")
    assert not is_pickle(tmp_path / "c.what")
