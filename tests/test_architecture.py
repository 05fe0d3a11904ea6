"""The house rules, read from the syntax tree of every module: floors, circles, packages, and code that runs data.

Lazy imports (inside a function) and type-only imports count like any other. The tables below are part of the design:
change them in the change that needs it, and say why.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "finetwo"

FLOORS = {
    "core": 1,
    "text": 2,
    "data": 3,
    "model": 3,
    "tasks": 4,
    "store": 5,
    "generate": 6,
    "train": 7,
    "insight": 8,
    "app": 9,
}
"""Floor of each folder; the package itself (`finetwo/__init__.py`, `__main__.py`) is the roof, above them all."""

ROOF = max(FLOORS.values()) + 1

ONLY = {"model": {"core"}}
"""Folders that may import less than their floor allows."""

PACKAGES = {
    "torch": ["model.*", "tasks.*", "store.*", "generate.*", "train.*", "insight.*", "app.*"],
    "numpy": ["data.*", "model.*", "tasks.*", "store.*", "generate.*", "train.*", "insight.*", "app.*"],
    "tokenizers": ["text.*"],
    "tiktoken": ["text.*"],
    "safetensors": ["store.*"],
    "yaml": ["store.*", "train.*", "app.*"],
    "rich": ["app.*", "train.listeners"],
    # optional or slow to import: one named place each
    "huggingface_hub": ["store.download"],
    "jsonargparse": ["app.arguments"],
    "pyarrow": ["data.parquet"],
    "sacrebleu": ["insight.overlap"],
    "rouge_score": ["insight.overlap"],
    "datasketch": ["insight.shingles"],
    "tensorboard": ["train.tensorboard"],
    "wandb": ["train.wandb"],
    "sklearn": ["app.classifier"],
    "triton": ["model.triton_kernels"],
}
"""Which modules may import a third-party package; one that is not listed may be imported nowhere."""

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MAY_UNPICKLE = ["data.pickle_child"]
"""The program of `finetwo convert` that reads a pickle: a process walled in before it looks at the file, with an
unpickler that knows no names; nothing imports it."""
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
}
"""Whatever could run code that lies in data."""

FORBIDDEN_KEYWORDS = {"allow_pickle", "shell"}
"""Keyword arguments that may only be the literal False."""

MAY_PRINT = ["app.*", "core.log"]
MAY_IMPORT_BY_NAME = [PACKAGE, "app.cli"]
"""Modules that may import a module whose name is not written out: the lazy public names, and the verbs by theirs."""

BIG = 300
"""Lines from which a file is named in the report; a smell, not a fault."""


@dataclass
class Module:
    """One module: its imports and calls with their lines, every name written out in full."""

    name: str
    path: Path
    imports: list[tuple[str, int]] = field(default_factory=list)
    calls: list[tuple[str, ast.Call]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def inner(self) -> str:
        """The name inside the package, a folder's `__init__` included: 'core.log', 'core.__init__'."""
        inner = self.name.removeprefix(PACKAGE).lstrip(".")
        return f"{inner}.__init__".lstrip(".") if self.path.name == "__init__.py" else inner

    @property
    def folder(self) -> str:
        """The folder the module stands in; empty for the roof."""
        return folder_of(self.name, self.path)

    def at(self, line: int) -> str:
        """Where a finding is, to be clicked on."""
        return f"{self.path}:{line}"

    def may(self, patterns: list[str]) -> bool:
        """Whether one of the table's patterns names this module."""
        return any(fnmatch(self.inner, pattern) or fnmatch(self.name, pattern) for pattern in patterns)


def folder_of(name: str, path: Path | None = None) -> str:
    parts = name.split(".")
    if len(parts) == 2 and path is not None and path.name != "__init__.py" and parts[1] not in FLOORS:
        return ""
    return parts[1] if len(parts) > 1 else ""


def dotted(node: ast.expr) -> str:
    """`a.b.c` as text; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def read(source: Path) -> dict[str, Module]:
    """Parse every module below `source`."""
    modules: dict[str, Module] = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    for module in modules.values():
        tree = ast.parse(module.path.read_text(encoding="utf-8"), str(module.path))
        for node in ast.walk(tree):
            note_import(module, node, modules)
        for node in ast.walk(tree):
            note_call(module, node)
    return modules


def note_import(module: Module, node: ast.AST, modules: dict[str, Module]) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            module.imports.append((alias.name, node.lineno))
            bound = alias.asname or alias.name.partition(".")[0]
            module.aliases[bound] = alias.name if alias.asname else bound
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.name.split(".") + ([""] if module.path.name == "__init__.py" else [])
            base = ".".join([*package[: len(package) - node.level], *([base] if base else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            module.imports.append((full if full in modules or not base.startswith(PACKAGE) else base, node.lineno))
            module.aliases[alias.asname or alias.name] = full


def note_call(module: Module, node: ast.AST) -> None:
    if not isinstance(node, ast.Call) or not (name := dotted(node.func)):
        return
    head, dot, tail = name.partition(".")
    full = module.aliases.get(head, head) + dot + tail
    module.calls.append((full, node))
    if full in {"importlib.import_module", "__import__"}:
        named = node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
        module.imports.append((node.args[0].value if named else "?", node.lineno))  # type: ignore[attr-defined]


def floor(folder: str) -> int:
    return FLOORS[folder] if folder else ROOF


def floor_faults(modules: dict[str, Module]) -> list[str]:
    """Imports that go up or sideways."""
    faults = []
    for module in modules.values():
        if module.folder and module.folder not in FLOORS:
            faults.append(f"{module.at(1)}: the folder {module.folder}/ has no floor")
            continue
        for name, line in module.imports:
            if name.partition(".")[0] != PACKAGE:
                continue
            target = modules.get(name)
            folder = target.folder if target else folder_of(name)
            if folder and folder not in FLOORS:
                faults.append(f"{module.at(line)}: imports {name}, which does not exist")
            elif folder != module.folder and floor(folder) >= floor(module.folder):
                faults.append(f"{module.at(line)}: {module.name} imports {name}: imports go down only")
            elif folder != module.folder and folder not in ONLY.get(module.folder, {folder}):
                faults.append(f"{module.at(line)}: {module.folder}/ may not import {name}")
    return faults


def circles(modules: dict[str, Module]) -> list[str]:
    """One line for each circle, found by walking the imports depth first."""
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in sorted({target for target, _ in modules[name].imports if target in modules}):
                walk(target, [*trail, name])
            done.add(name)

    for name in modules:
        walk(name, [])
    return found


def package_faults(modules: dict[str, Module]) -> list[str]:
    """Third-party packages outside the modules named for them, and imports that cannot be read."""
    faults = []
    for module in modules.values():
        for name, line in module.imports:
            top = name.partition(".")[0]
            if top == "?":
                if not module.may(MAY_IMPORT_BY_NAME):
                    faults.append(f"{module.at(line)}: the imported module is not written out")
            elif top in FORBIDDEN_MODULES and not module.may(MAY_UNPICKLE):
                faults.append(f"{module.at(line)}: imports {top}, which runs code from data")
            elif name == f"{PACKAGE}.{MAY_UNPICKLE[0]}":
                faults.append(f"{module.at(line)}: imports {name}, which must stay a process of its own")
            elif top != PACKAGE and top not in sys.stdlib_module_names and not module.may(PACKAGES.get(top, [])):
                allowed = ", ".join(PACKAGES.get(top, [])) or "nowhere"
                faults.append(f"{module.at(line)}: {module.name} imports {top}; allowed: {allowed}")
    return faults


def call_faults(modules: dict[str, Module]) -> list[str]:
    """Calls and borrowed names that could run code from data, and print outside the console's own places."""
    faults = []
    for module in modules.values():
        borrowed = [(name, line) for name, line in module.imports if name in FORBIDDEN_CALLS]
        faults += [f"{module.at(line)}: imports {name}" for name, line in borrowed]
        for name, call in module.calls:
            if name in FORBIDDEN_CALLS:
                faults.append(f"{module.at(call.lineno)}: calls {name}")
            if name == "print" and not module.may(MAY_PRINT):
                faults.append(f"{module.at(call.lineno)}: prints; console output is app/'s and core/log.py's work")
            for keyword in call.keywords:
                harmless = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_KEYWORDS and not harmless:
                    faults.append(f"{module.at(call.lineno)}: {name}({keyword.arg}=...) runs code from data")
    return faults


CHECKS = [floor_faults, circles, package_faults, call_faults]


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return read(SOURCE)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_keeps_its_rules(check: Callable[[dict[str, Module]], list[str]], house: dict[str, Module]) -> None:
    faults = check(house)
    assert not faults, "\n" + "\n".join(faults)


def test_there_is_a_house(house: dict[str, Module]) -> None:
    assert "finetwo.core.errors" in house
    assert {module.folder for module in house.values()} & set(FLOORS)


def test_big_files_are_named(house: dict[str, Module], capsys: pytest.CaptureFixture[str]) -> None:
    """Report, never fail: a file over 300 lines is a smell."""
    sizes = {module.path: len(module.path.read_text(encoding="utf-8").splitlines()) for module in house.values()}
    big = sorted(((lines, path) for path, lines in sizes.items() if lines > BIG), reverse=True)
    if big:
        rows = "; ".join(f"{path.relative_to(SOURCE)} {lines}" for lines, path in big)
        with capsys.disabled():
            print(f"\nfiles over {BIG} lines: {rows}")


PLANTED = {
    "upward arrow": ("core/a.py", "from finetwo.text import b"),
    "upward arrow, lazy": ("core/a.py", "def f():\n    import finetwo.text.b"),
    "upward arrow, type only": ("core/a.py", "if TYPE_CHECKING:\n    from finetwo.text.b import B"),
    "upward arrow, relative": ("core/a.py", "from ..text.b import B"),
    "upward arrow, relative name": ("core/a.py", "from ..text import b"),
    "upward arrow, by name": ("core/a.py", "import importlib\nimportlib.import_module('finetwo.text.b')"),
    "upward arrow to the roof": ("app/a.py", "from finetwo import __version__"),
    "data sees model": ("data/a.py", "import finetwo.model.m"),
    "model sees data": ("model/a.py", "from finetwo.data import d"),
    "model sees text": ("model/a.py", "from finetwo.text import b"),
    "train sees insight": ("train/a.py", "from finetwo.insight import i"),
    "a folder without a floor": ("attic/a.py", "x = 1"),
    "circle of two": ("core/c.py", "from finetwo.core.d import x\n"),
    "circle of one": ("core/a.py", "def f():\n    from finetwo.core import a"),
    "torch in core": ("core/a.py", "import torch.nn as nn"),
    "torch in text": ("text/a.py", "def f():\n    from torch import Tensor"),
    "torch in data": ("data/a.py", "import torch"),
    "numpy in text": ("text/a.py", "import numpy as np"),
    "optional package": ("store/a.py", "import huggingface_hub"),
    "command line library": ("app/a.py", "from jsonargparse import ArgumentParser"),
    "unlisted package": ("app/a.py", "import pandas"),
    "pickle": ("store/a.py", "import pickle"),
    "pickle from": ("store/a.py", "from pickle import loads"),
    "the unpickling program": ("data/a.py", "from finetwo.data.pickle_child import main"),
    "torch.load": ("store/a.py", "import torch\ntorch.load('x')"),
    "torch.load renamed": ("store/a.py", "import torch as t\nt.load('x')"),
    "torch.load borrowed": ("store/a.py", "from torch import load as l\nf = l"),
    "yaml.load": ("app/a.py", "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)"),
    "eval": ("app/a.py", "eval('1')"),
    "exec": ("app/a.py", "def f():\n    exec('1')"),
    "allow_pickle": ("data/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    "shell": ("app/a.py", "import subprocess\nsubprocess.run('x', shell=True)"),
    "print": ("train/a.py", "print('x')"),
    "hidden import": ("train/a.py", "import importlib\nimportlib.import_module(name)"),
}

HARMLESS = """
import importlib
import json
import numpy as np
import torch
import yaml
from finetwo.core import log
from finetwo.train import other
from . import other as same
def f(model):
    model.eval()
    np.load("x", allow_pickle=False)
    importlib.import_module("json")
    return yaml.safe_load("x")
"""


def plant(folder: Path, extra: dict[str, str]) -> dict[str, Module]:
    """Write a small sound house with some files more, and read it."""
    files = {f"{name}/__init__.py": "" for name in FLOORS} | {
        "__init__.py": "import importlib\ndef __getattr__(name):\n    return importlib.import_module(name)",
        "core/d.py": "from finetwo.core.c import y\n",
        "core/c.py": "",
        "core/log.py": "print('x')",
        "text/b.py": "import tokenizers\nfrom finetwo.core import log",
        "data/d.py": "import numpy",
        "data/pickle_child.py": "import pickle",
        "model/m.py": "import torch",
        "insight/i.py": "",
        "train/other.py": "",
        "store/download.py": "def f():\n    import huggingface_hub",
        "app/arguments.py": "import jsonargparse\n",
        "app/cli.py": "from finetwo.train import sound\nprint('x')",
        "train/sound.py": HARMLESS,
    }
    for name, text in (files | extra).items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read(folder)


def test_a_sound_house_passes(tmp_path: Path) -> None:
    modules = plant(tmp_path, {})
    assert [fault for check in CHECKS for fault in check(modules)] == []


@pytest.mark.parametrize(("file", "text"), PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_caught(file: str, text: str, tmp_path: Path) -> None:
    modules = plant(tmp_path, {file: text})
    faults = [fault for check in CHECKS for fault in check(modules)]
    assert len(faults) == 1, faults
