"""The benchmarks run, hand over the one form, and the page says what they found; no test here is timed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The scripts import each other by plain names, as they do when they are run."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def module(name: str) -> Any:
    return importlib.import_module(name)


def smoke(script: str, out: Path) -> dict[str, Any]:
    """Run a script with --smoke; return what it wrote."""
    command = [sys.executable, str(FOLDER / script), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "written: " in done.stdout
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def well_formed(content: dict[str, Any]) -> None:
    """The form that harness.py describes, and no side that failed."""
    assert content["format"] == 1 and content["smoke"] is True
    assert content["machine"]["cores"] >= 1 and content["versions"]["torch"] and len(content["commit"]) >= 7
    for row in content["workloads"]:
        assert row["failures"] == {} and row["sides"], row
        for side in row["sides"].values():
            assert side["low"] <= side["median"] <= side["high"] and side["median"] > 0 and side["peak_mb"] > 0
        for pair in row["pairs"]:
            assert pair["of"] in ("speed", "memory") and len(pair["ratios"]) == 1


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_data(tmp_path: Path) -> None:
    content = smoke("data.py", tmp_path / "data.json")
    well_formed(content)
    (row,) = content["workloads"]
    counts = {side["tokens"] for name, side in row["sides"].items() if name != "hf, whole"}
    assert len(counts) == 1, "all count the same tokens"
    assert [(p["must"], p["aim"]) for p in row["pairs"]] == [(4.0, 6.0)] * 2


def test_limits(tmp_path: Path) -> None:
    content = smoke("limits.py", tmp_path / "limits.json")
    well_formed(content)
    assert {name for row in content["workloads"] for name in row["sides"]} == {"float32", "bfloat16", "copy", "read"}


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    """Every side makes the same steps from the same weights: the losses are equal where nothing is drawn."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    content = smoke("train.py", tmp_path / "train.json")
    well_formed(content)
    assert len(content["workloads"]) == 16
    for row in content["workloads"]:
        ours = next(side for name, side in row["sides"].items() if name.startswith("finetwo"))
        peers = [side for name, side in row["sides"].items() if not name.startswith(("finetwo", "LitGPT"))]
        assert peers and len(set(ours["losses"])) == len(ours["losses"]) >= 2
        assert {side["tokens"] for side in peers} == {ours["tokens"]}
        if row["group"] == "dropout 0":
            bound = 2e-4 if "float32" in row["name"] else 0.02
            away = [abs(a - b) for side in peers for a, b in zip(ours["losses"], side["losses"], strict=True)]
            assert max(away) < bound, row["name"]


@pytest.mark.slow
def test_gpu_on_the_cpu(tmp_path: Path) -> None:
    content = smoke("gpu.py", tmp_path / "gpu.json")
    well_formed(content)
    assert [row["group"] for row in content["workloads"]] == ["limit", "training", "training", "decoding"]
    trained = [row for row in content["workloads"] if row["group"] == "training"]
    assert all(side["losses"] for row in trained for side in row["sides"].values())
    assert any("of the measured matrix rate" in note for note in content["notes"])


@pytest.mark.slow
def test_start_and_growth(tmp_path: Path) -> None:
    well_formed(smoke("start.py", tmp_path / "start.json"))
    growth = smoke("growth.py", tmp_path / "growth.json")
    well_formed(growth)
    assert {curve["x"] for curve in growth["curves"]} >= {"parameters", "tokens a row", "rows a step", "rank of LoRA"}


def test_the_check_fails_where_the_device_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast wrong step counts nothing: nothing is measured after a check that fails."""
    sides = module("gpu_sides")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(sides, "emit", told.append)
    job = {"shape": "smaller", "device": "cpu"}
    sides.check(job)
    assert set(told[0]["differences"]) == {"float32", "bf16", "float32, transformers"}
    real, calls = sides.measured, []

    def wrong(network: Any, tokens: Any, precision: str) -> Any:
        calls.append(precision)
        logits, loss, gradient = real(network, tokens, precision)
        return (logits * 1.01 if len(calls) == 2 else logits), loss, gradient

    monkeypatch.setattr(sides, "measured", wrong)
    with pytest.raises(SystemExit, match="float32 differs from float32 on the CPU by"):
        sides.check(job)


# --- what they share --------------------------------------------------------------------------------------------------


def asked(out: Path, *words: str) -> Any:
    return module("harness").options("about").parse_args(["--out", str(out), *words])


def test_sides_run_in_turn_and_ratios_are_of_one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = module("harness")
    order: list[str] = []
    values = {"ours": [4.0, 9.0, 2.0], "peer": [2.0, 3.0, 2.0], "broken": [0.0]}

    def run(side: Any, timeout: float) -> dict[str, Any]:
        order.append(side.name)
        if side.name == "broken":
            return {"failure": "Error: no"}
        return {
            "value": values[side.name][order.count(side.name) - 1],
            "peak_mb": 10.0 if side.name == "ours" else 40.0,
        }

    monkeypatch.setattr(harness, "run_side", run)
    monkeypatch.setattr(harness, "PARTIAL", tmp_path)
    bench = harness.Bench("test", asked(tmp_path / "test.json", "--rounds", "3"))
    sides = [harness.Side(name, []) for name in values]
    workload = harness.Workload("w", "x/s", sides, [("ours", "peer", 2.0, 3.0)], memory=[("ours", "peer", 0.5, 0.2)])
    assert bench.measure_all([workload])
    assert order == ["ours", "peer", "broken", "peer", "ours", "ours", "peer"]
    bench.finish()
    (row,) = json.loads((tmp_path / "test.json").read_text())["workloads"]
    speed, memory = row["pairs"]
    assert speed["ratios"] == [2.0, 3.0, 1.0] and speed["median"] == 2.0
    assert memory["median"] == 0.25 and row["failures"] == {"broken": "Error: no"}
    verdict = module("comparing").verdict
    assert verdict(speed) == "met" and verdict(memory) == "met"
    assert verdict(speed | {"median": 1.9}) == verdict(memory | {"median": 0.6}) == "MISSED"
    assert verdict(speed | {"median": 3.1}) == verdict(memory | {"median": 0.1}) == "aim met"


def test_a_stopped_benchmark_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = module("harness")
    runs: list[str] = []

    def run(side: Any, timeout: float) -> dict[str, Any]:
        runs.append(side.name)
        return {"value": 1.0, "peak_mb": 1.0}

    monkeypatch.setattr(harness, "run_side", run)
    monkeypatch.setattr(harness, "PARTIAL", tmp_path)
    workload = harness.Workload("w", "s", [harness.Side("a", []), harness.Side("b", [])])
    first = harness.Bench("test", asked(tmp_path / "t.json", "--rounds", "2"))
    first.once("w", workload.sides[0], 0)
    first.ends = 0.0
    assert not first.measure_all([workload]) and runs == ["a"]
    second = harness.Bench("test", asked(tmp_path / "t.json", "--rounds", "2"))
    assert second.measure_all([workload]) and sorted(runs) == ["a", "a", "b", "b"]
    second.finish()
    harness.Bench("test", asked(tmp_path / "t.json", "--rounds", "2")).measure_all([workload])
    assert len(runs) == 8, "a finished benchmark is measured anew"


def test_one_side_in_a_process_of_its_own(tmp_path: Path) -> None:
    harness = module("running")
    script = tmp_path / "side.py"
    script.write_text(
        "import sys\nfrom running import emit\nassert sys.argv[1] != 'x', 'Error: x'\nemit({'value': 7})\n"
    )
    found = harness.run_side(harness.script_side("a", script, ["y"]), 60)
    assert found["value"] == 7 and found["peak_mb"] > 1
    assert "Error: x" in harness.run_side(harness.script_side("a", script, ["x"]), 60)["failure"]


def test_sides_take_turns(tmp_path: Path) -> None:
    """One computes at a time, each round in the other direction, and one that fails does not hold up the others."""
    running = module("running")
    script, told = tmp_path / "side.py", tmp_path / "told"
    script.write_text(
        "import sys\nfrom running import emit, in_turn, turn\nassert in_turn()\nname = sys.argv[1]\n"
        "for step in range(3):\n    turn()\n    assert (name, step) != ('c', 1), 'Error: c'\n"
        f"    for word in 'begins', 'ends':\n        print(name, word, file=open({str(told)!r}, 'a'))\n"
        "emit({'value': 2.0, 'values': [1.0, 2.0, 3.0]})\n"
    )
    found = running.take_turns([running.script_side(name, script, [name]) for name in "abc"], 60)
    assert found["a"]["values"] == found["b"]["values"] == [1.0, 2.0, 3.0] and "Error: c" in found["c"]["failure"]
    order = ["a", "b", "c", "b", "a", "a", "b"]
    assert told.read_text().split("\n")[:-1] == [f"{name} {word}" for name in order for word in ("begins", "ends")]
    late = running.take_turns([running.Side("x", [sys.executable, "-c", "import time; time.sleep(60)"])], 0.5)
    assert "longer than" in late["x"]["failure"]


def test_a_ratio_is_of_two_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = module("harness")
    values = {"ours": [4.0, 9.0, 2.0], "peer": [2.0, 3.0, 2.0]}
    calls: list[int] = []

    def turns(sides: Any, timeout: float) -> dict[str, Any]:
        calls.append(1)
        return {name: {"value": found[0], "values": found, "peak_mb": 4.0} for name, found in values.items()}

    monkeypatch.setattr(harness, "take_turns", turns)
    monkeypatch.setattr(harness, "PARTIAL", tmp_path)
    sides = [harness.Side(name, []) for name in values]
    workload = harness.Workload(
        "w", "x/s", sides, [("ours", "peer", 2.0, 3.0)], [("ours", "peer", 1.0, 0.5)], in_turn=True
    )
    for _ in range(2):
        bench = harness.Bench("test", asked(tmp_path / "test.json"))
        assert bench.measure_all([workload])
        speed, memory = bench.workloads[0]["pairs"]
        assert speed["ratios"] == [2.0, 3.0, 1.0] and memory["ratios"] == [1.0]
        assert bench.workloads[0]["sides"]["ours"]["values"] == values["ours"]
    assert len(calls) == 1, "a workload that was measured is not measured again by a call that goes on"


# --- what is asked of training ----------------------------------------------------------------------------------------


def bars(train: Any, *, bf16: bool) -> dict[tuple[str, str], Any]:
    """What is asked of each pair of a workload, by the workload and the peer."""
    where = train.Where(bf16, False, False, 4, 2, frozenset(train.MODULES), {})
    found = train.workloads(where, [0.0, 0.1])
    assert all(pair[2] is None for w in found if w.group == "dropout 0.1" for pair in w.pairs)
    return {(w.name, pair[1]): pair[2:] for w in found if w.group == "dropout 0" for pair in w.pairs if pair[2]}


def test_no_bar_is_won_by_imitated_bf16() -> None:
    """Where bf16 is left out, the bars of the best mode stand at the peers' float32, and none at bf16 or autocast."""
    train = module("train")
    plain, native = bars(train, bf16=False), bars(train, bf16=True)
    assert all("float32" in workload and "float32" in peer for workload, peer in plain)
    assert plain["instruct, full, float32", "TRL defaults but float32"] == (3.0, 5.0)
    assert plain["classification, batch 32, float32", "Trainer float32"] == (1.8, 2.5)
    assert native["classification, batch 32, bf16", "Trainer autocast"] == (1.8, 2.5)
    assert native["instruct, LoRA r=8, bf16", "TRL LoRA defaults"] == (4.5, 8.0)
    assert native["instruct, LoRA r=8, bf16", "PEFT + Trainer autocast"] == (2.3, 4.0)
    assert native["dense 1024, float32", "plain loop float32"] == (1.0, 1.1)
    assert ("instruct, full, float32", "TRL defaults but float32") not in native
    where = train.Where(False, False, False, 4, 2, frozenset(train.MODULES), {})
    assert any(note.startswith("bf16 is left out") for note in train.notes_of(where, True))
    assert not any("bf16 is" in note for note in train.notes_of(where, False))


# --- the page ---------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, *found: dict[str, Any]) -> str:
    page = module("performance_page")
    (tmp_path / "results").mkdir()
    for content in found:
        (tmp_path / "results" / f"{content['benchmark']}.json").write_text(json.dumps(content))
    assert page.main(["--results", str(tmp_path / "results"), "--docs", str(tmp_path)]) == 0
    return (tmp_path / "performance.md").read_text()


def result(name: str, rows: list[dict[str, Any]], curves: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    where = {
        "cpu": "A Processor",
        "cores": 2,
        "instructions": ["avx2"],
        "memory_gib": 8.0,
        "system": "S",
        "python": "3",
    }
    return {
        "format": 1, "benchmark": name, "at": "2026-01-02 03:04", "commit": "c0ffee1234567", "changed": False,
        "smoke": False, "machine": where, "versions": {"torch": "2.1"}, "peer_versions": {"trl": "9.9"},
        "settings": {"data": "made"}, "workloads": rows, "curves": curves or [], "notes": ["a note"],
    }  # fmt: skip


def side(median: float, **more: Any) -> dict[str, Any]:
    return {
        "values": [median],
        "median": median,
        "low": median / 2,
        "high": median * 2,
        "peak_mb": 5.0,
        "note": "",
        **more,
    }


def row(name: str, unit: str, sides: dict[str, Any], pairs: list[Any] | None = None) -> dict[str, Any]:
    return {"name": name, "unit": unit, "sides": sides, "pairs": pairs or [], "failures": {"litgpt": "not installed"}}


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    pair = {"of": "speed", "ours": "finetwo", "peer": "trl", "ratios": [2.5], "median": 2.5, "low": 2.25, "high": 2.75}
    sides = {
        "finetwo": side(250.0, flops=2e8, precision="bf16", losses=[3.5, 2.25]),
        "trl": side(100.0, losses=[3.5, 2.5]),
    }
    limits = result("limits", [row("products", "GFLOP/s", {"bfloat16": side(200.0)})])
    curves = [{"name": "Speed by batch", "x": "rows", "y": "tokens/s", "lines": {"finetwo": [[1, 5], [2, 9], [4, 12]]}}]
    dropped = row("instruct, dropped", "tokens/s", {"finetwo": side(3.0)}) | {"group": "dropout 0.1", "failures": {}}
    kept = row("instruct", "tokens/s", sides, [pair | {"must": 2.0, "aim": 3.0}]) | {"group": "dropout 0"}
    train = result("train", [kept, dropped], curves)
    text = written(tmp_path, train, limits)
    assert "## Training" in text and "## What the machine gives" in text
    first, second = text.index("### Dropout 0\n"), text.index("### Dropout 0.1\n")
    assert first < text.index("| instruct | finetwo / trl |") < second < text.index("| instruct, dropped | finetwo |")
    assert "## Generation" not in text and "## One GPU" not in text, "what was not run has no section"
    assert "| instruct | finetwo / trl | 2.50 times as fast | 2.25 to 2.75 | 2 / 3 | met |" in text
    assert "25% of matrix rate" in text, "250 tokens/s at 0.2 GFLOP each, of 200 GFLOP/s"
    assert "c0ffee1234" in text and "A Processor, 2 cores (avx2)" in text and "peers: trl 9.9" in text
    assert "3.5000, 2.2500" in text and "- instruct, litgpt: not installed" in text
    assert (tmp_path / "performance" / "train.png").stat().st_size > 1000 and "(performance/train.png)" in text


def test_no_results_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert module("performance_page").main(["--results", str(tmp_path / "none"), "--docs", str(tmp_path)]) == 2
    assert "run a benchmark" in capsys.readouterr().out and not (tmp_path / "performance.md").exists()


def test_the_page_in_the_repository_is_what_its_files_make(tmp_path: Path) -> None:
    """No figure on it was typed by hand."""
    page, docs = module("performance_page"), ROOT / "docs" / "performance.md"
    results = FOLDER / "results"
    made = page.page(results, tmp_path) if results.is_dir() else None
    assert (made is None) == (not docs.exists())
    assert made is None or made.read_text() == docs.read_text(), "run make bench-page"


# --- the data they are measured on ------------------------------------------------------------------------------------


def test_records_are_the_same_everywhere() -> None:
    workloads = module("workloads")
    assert workloads.some(3) == workloads.some(3) != workloads.some(3, seed=1)
    assert workloads.some(1)[0].keys() == {"instruction", "input", "output"}


def test_a_training_job_has_the_lengths_of_alpaca(tmp_path: Path) -> None:
    """Some 57 tokens a record with its template, some 20 of them common to all, a quarter of them in the answer."""
    data = module("training_data")
    job = {"kind": "short", "shape": "smaller", "batch": 8, "length": 128, "steps": 7, "warm": 1, "rank": 0}
    job |= {"precision": "float32", "device": "cpu", "tokenizer": str(data.write_tokenizer(tmp_path / "tokenizer"))}
    found = [sequence for batch in data.batches_of(job) for sequence in batch]
    assert len(found) == 64
    lengths = [len(sequence) for sequence in found]
    learned = [int((sequence.targets >= 0).sum()) for sequence in found]
    assert 50 <= sum(lengths) / 64 <= 64 and 10 <= sum(learned) / 64 <= 16
    begins = [sequence.tokens.tolist() for sequence in found]
    shared = next(n for n in range(100) if len({tuple(row[: n + 1]) for row in begins}) > 1)
    assert 18 <= shared <= 26
    job |= {"kind": "classes", "batch": 4}
    texts = [len(sequence) for batch in data.batches_of(job) for sequence in batch]
    assert 14 <= sum(texts) / 32 <= 22


def test_parameters_of_the_published_shapes() -> None:
    workloads = module("workloads")
    assert workloads.parameters("gpt2") == 124_439_808 and workloads.parameters("gpt2-medium") == 354_823_168


def test_peers_are_pinned() -> None:
    needed, optional = module("peers").pinned()
    assert needed[0].startswith("torch==") and all("==" in line for line in needed + optional)
    ours = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert all(ours.get(n, v) == v for n, v in (line.split()[0].split("==") for line in needed)), "one version for both"
