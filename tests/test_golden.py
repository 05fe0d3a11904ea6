"""Golden files: the public names with their signatures, and every `--help`.

`make golden` (FINETWO_GOLDEN=1) rewrites them; the diff is reviewed like code. Line breaks are not compared, since
Python versions wrap help differently.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetwo.app.cli import VERBS

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
REWRITE = os.environ.get("FINETWO_GOLDEN") == "1"

COMMANDS = ["", *VERBS, "tokenizer train"]

ASK_FOR_HELP = """
import contextlib, io, json, sys
from finetwo.app.cli import entry
answers = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["finetwo", *command.split(), "--help"]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = entry()
        except SystemExit as stop:
            code = stop.code
    answers[command] = [code or 0, out.getvalue()]
print(json.dumps(answers))
"""


def normal(text: str) -> str:
    """The text without what differs between Python versions: line breaks, and `-c X, --config X`."""
    return re.sub(r"(-\w) (\S+), (--\S+ \2)", r"\1, \3", " ".join(text.split()))


def compare(name: str, got: str) -> None:
    """Compare with the golden file, or write it."""
    path = GOLDEN / f"{name}.txt"
    got = "".join(f"{line.rstrip()}\n" for line in got.rstrip().splitlines())
    if REWRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(got, encoding="utf-8")
        return
    assert path.exists(), f"no golden file {path.name}: run `make golden` and review it"
    assert normal(got) == normal(path.read_text(encoding="utf-8")), (
        f"{path.name} changed: if that is meant, run `make golden` and review the diff\n{got}"
    )


def signature(thing: object) -> str:
    try:
        return str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""


def described(name: str, thing: object) -> list[str]:
    """One line for a function or value; for a class also its public methods and properties."""
    if not inspect.isclass(thing):
        return [f"{name}{signature(thing)}" if callable(thing) else f"{name}: {type(thing).__name__}"]
    lines = [f"class {name}{signature(thing)}"]
    for member, value in sorted(vars(thing).items()):
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            lines.append(f"    {member}")
        elif callable(getattr(thing, member)):
            lines.append(f"    {member}{signature(getattr(thing, member))}")
    return lines


def test_public_names() -> None:
    finetwo = importlib.import_module("finetwo")
    names = getattr(finetwo, "__all__", None)
    if names is None:
        pytest.skip("finetwo has no public names yet")
    lines = [line for name in sorted(names) for line in described(name, getattr(finetwo, name))]
    compare("public_names", "\n".join(lines))


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """Every --help, from one process without color and 100 columns wide."""
    if importlib.util.find_spec("finetwo") is None or not (ROOT / "src/finetwo/app/cli.py").exists():
        pytest.skip("there is no command line yet")
    kept = {key: value for key, value in os.environ.items() if key not in {"FORCE_COLOR", "PYTHON_COLORS"}}
    env = kept | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", ASK_FOR_HELP, json.dumps(COMMANDS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (code, text) for name, (code, text) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "finetwo")
def test_help(command: str, helps: dict[str, tuple[int, str]]) -> None:
    code, text = helps[command]
    assert code == 0, text
    assert str(ROOT) not in text, "help must not show a path of this machine"
    compare("-".join(["help", *command.split()]), text)


def test_normal_hides_only_the_wrapping() -> None:
    assert normal("  -c X, --config X\n   a file") == normal("-c, --config X  a file")
    assert normal("--lr LR") != normal("--lr RATE")
