"""Make .venv-peers: the pinned packages that FineTwo is measured against, in an environment of their own.

    python benchmarks/peers.py [--folder .venv-peers] [--without NAME,...]

It must not touch FineTwo's own environment. Its one invariant: what is needed is installed or the script fails, and
what is optional is installed or named as missing with pip's own last words.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PINS = HERE / "peers.txt"
BUILDS = {"llama-cpp-python": "built from source, some minutes"}
"""Packages that take long, and why."""


def name_of(requirement: str) -> str:
    """The package that a line of peers.txt names."""
    return requirement.partition("==")[0].strip()


def pinned() -> tuple[list[str], list[str]]:
    """The needed and the optional requirements of peers.txt."""
    needed: list[str] = []
    optional: list[str] = []
    into = needed
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# optional"):
            into = optional
        elif line and not line.startswith("#"):
            into.append(line)
    return needed, optional


def constraints(folder: Path) -> Path:
    """One file that holds our own pins and the peers', which win where both name a package."""
    needed, optional = pinned()
    pins = {name_of(line): line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()}
    pins |= {name_of(line): line.split()[0] for line in needed + optional}
    file = folder / "constraints.txt"
    file.write_text("\n".join(pins.values()) + "\n", encoding="utf-8")
    return file


def install(python: Path, limits: Path, requirements: list[str]) -> str:
    """Install some requirements; return an empty text, or what pip said last."""
    started = time.monotonic()
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "-c", str(limits)]
    words = [word for requirement in requirements for word in requirement.split()]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    names = ", ".join(map(name_of, requirements))
    if done.returncode == 0:
        print(f"  {names}: {time.monotonic() - started:.0f} s", flush=True)
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"pip ended with {done.returncode}"


def main(words: list[str]) -> int:
    """Make the environment, or complete the one that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--without", default="", help="optional packages to leave out, comma-separated")
    asked = parser.parse_args(words)
    folder = asked.folder.resolve()
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    limits = constraints(folder)
    needed, optional = pinned()
    print(f"installing into {folder}", flush=True)
    for step in ([needed[0]], needed[1:]):  # PyTorch first, so that nothing else chooses another build of it
        if fault := install(python, limits, step):
            print(f"peers: {', '.join(map(name_of, step))} could not be installed: {fault}", file=sys.stderr)
            return 3
    missing = []
    for requirement in optional:
        name = name_of(requirement)
        if name in asked.without.split(","):
            continue
        if name in BUILDS:
            print(f"  {name} is {BUILDS[name]}", flush=True)
        if fault := install(python, limits, [requirement]):
            missing.append(name)
            print(f"  {name} is left out: {fault}", flush=True)
    print(f"peers are ready{': without ' + ', '.join(missing) if missing else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
