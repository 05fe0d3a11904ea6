"""Curves, configuration and samples of a run as Weights & Biases keeps them, in the folder `wandb` of the run.

It never asks for a login and contacts no server unless the environment says so: WANDB_MODE=online, or WANDB_API_KEY
without a WANDB_MODE. Its one invariant: a resumed run goes on under the id it began with.
"""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from finetwo.core.errors import InputError
from finetwo.train.tracker import Opening, Sample, Tracker, require

FOLDER = "wandb"
_RUN_ID = "run-id"
_OFFLINE = ("offline", "dryrun")
_QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "host": "",
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": 30.0,
    "finish_timeout": 60.0,
}
"""Settings that keep the terminal ours, the machine's name, code and packages unsent, and no run waiting for ever."""


def make(run: Path) -> Tracker:
    """Return the listener; InputError where the package is missing, or a login that the environment asks for."""
    require("wandb", "wandb")
    if mode() == "online" and not _has_login():
        fix = "set WANDB_API_KEY, run `wandb login`, or leave WANDB_MODE out to track offline"
        raise InputError("--track wandb", "WANDB_MODE=online, but nobody is logged in", None, fix)
    return Tracker("wandb", run, WandbRun())


def mode() -> str:
    """online, offline or disabled, as the environment wants it; offline unless it says otherwise."""
    given = os.environ.get("WANDB_MODE", "").strip().lower()
    if given in _OFFLINE:
        return "offline"
    if given == "disabled":
        return "disabled"
    return "online" if given == "online" or (not given and os.environ.get("WANDB_API_KEY")) else "offline"


def _has_login() -> bool:
    """Whether a key is there, so that the package will not ask for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    for path in (Path(os.environ.get("NETRC") or "~/.netrc"), Path("~/_netrc")):
        try:
            if netrc.netrc(path.expanduser()).authenticators(host):
                return True
        except (OSError, RuntimeError, netrc.NetrcParseError):
            continue
    return False


class WandbRun:
    """A sink that writes one run of Weights & Biases."""

    def __init__(self) -> None:
        self._run: Any = None
        self._environment: Any = None

    def open(self, opening: Opening) -> None:
        """Begin the run, or go on with the one that the folder remembers."""
        folder = opening.run / FOLDER
        folder.mkdir(exist_ok=True)
        self._environment = _environment(folder)
        self._environment.__enter__()
        import wandb

        chosen: Any = mode()
        known = {name: value for name, value in _QUIET.items() if name in wandb.Settings.model_fields}
        self._run = wandb.init(
            dir=str(opening.run),
            project=os.environ.get("WANDB_PROJECT") or "finetwo",
            name=os.environ.get("WANDB_NAME") or opening.run.resolve().name,
            id=_run_id(folder / _RUN_ID, fresh=opening.resumed == 0),
            resume="allow" if chosen == "online" and opening.resumed else None,
            config=yaml.safe_load(opening.config) if opening.config else {},
            mode=chosen,
            reinit="create_new",
            settings=wandb.Settings(**known),
        )

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures at the run's own step; steps that a resumed run takes again are equal and may be dropped."""
        self._run.log(dict(values), step=step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log the samples of a step as a table."""
        import wandb

        rows = [[step, s.prompt, s.answer] for s in samples]
        table = wandb.Table(columns=["step", "prompt", "answer"], data=rows)
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        """Finish the run; online, wait for what is still to be sent, but not for ever."""
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish()
        finally:
            if self._environment is not None:
                self._environment.__exit__(None, None, None)
                self._environment = None


def _run_id(path: Path, *, fresh: bool) -> str:
    """The id of the run: the stored one if it goes on, else a new one, which is stored."""
    if not fresh and path.is_file():
        return path.read_text(encoding="ascii").strip()
    found = secrets.token_hex(4)
    path.write_text(found + "\n", encoding="ascii")
    return found


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Variables that keep the package's own files in the run folder and its error reports at home, where not set."""
    wanted = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(folder.resolve() / "cache"),
        "WANDB_DATA_DIR": str(folder.resolve() / "data"),
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
