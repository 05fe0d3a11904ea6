"""Quantised folders: written, read back, refused; and what `finetwo export --quantize` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import finetwo
from finetwo.app.cli import main
from finetwo.core.errors import InputError
from finetwo.model.quantised import KINDS, Kind
from finetwo.store.folder import load_network
from finetwo.store.models import open_model
from finetwo.store.quantise import export_quantised
from finetwo.store.tensors import read_tensors, write_tensors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    base = tmp_path_factory.mktemp("codes")
    for kind in KINDS:
        export_quantised(open_model("tiny"), base / kind, kind)
    return {kind: base / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_what_quantising_at_load_gives(
    kind: Kind, folders: dict[Kind, Path], tmp_path: Path
) -> None:
    at_load, read = finetwo.load("tiny", quantize=kind, device="cpu"), finetwo.load(str(folders[kind]), device="cpu")
    assert read.network.quantised == kind
    probe = torch.arange(40).view(1, 40)
    with torch.no_grad():
        assert torch.equal(at_load.network(probe), read.network(probe))
    assert at_load.generate("Once upon", max_new_tokens=6) == read.generate("Once upon", max_new_tokens=6)
    read.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folders[kind] / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "config.json").read_bytes() == (folders[kind] / "config.json").read_bytes()


def test_sizes(folders: dict[Kind, Path]) -> None:
    whole = 4 * sum(p.numel() for p in open_model("tiny").network.parameters())
    sizes = {kind: (folder / "model.safetensors").stat().st_size for kind, folder in folders.items()}
    assert sizes["int8"] < 0.29 * whole
    assert sizes["int4"] < 0.24 * whole


def test_what_the_verb_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "tiny", "--quantize", "int8", "--out", str(tmp_path / "small")]) == 0
    said = capsys.readouterr().err
    for part in ("MB in float32 before", "MB in int8 after", "perplexity 1", "transformers neither"):
        assert part in said
    assert main(["export", "tiny", "--quantize", "int3", "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "int8, int4" in said and "int3" in said
    assert main(["export", "tiny", "--quantize", "int8", "--dtype", "bf16", "--out", str(tmp_path / "none")]) == 2
    assert main(["export", str(tmp_path / "small"), "--quantize", "int4", "--out", str(tmp_path / "none")]) == 2
    assert "quantised already" in capsys.readouterr().err
    assert main(["generate", "tiny", "Once", "--quantize", "int3"]) == 2
    assert not (tmp_path / "none").exists()


def test_nothing_is_written_above_the_bound(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"int4 would change a logit by .*; the bound is 0.01"):
        export_quantised(open_model("tiny"), tmp_path / "none", "int4", 0.01)
    assert not list(tmp_path.iterdir())


def test_transformers_refuses_it(folders: dict[Kind, Path]) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="gpt2-codes"):
        AutoModelForCausalLM.from_pretrained(str(folders["int8"]))


BROKEN = {
    "missing": "is missing",
    "shape": "must have shape",
    "dtype": "must be torch.int8",
    "infinite": "NaN or infinite",
    "extra": "1 tensors too many",
    "bits": "bits 8 or 4",
    "format": "format 1",
    "foreign": "quantization_config",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_folders_are_refused(kind: str, folders: dict[Kind, Path], tmp_path: Path) -> None:
    for file in folders["int8"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors, config = read_tensors(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    name = "transformer.h.1.mlp.c_fc.weight"
    if kind == "missing":
        del tensors[f"{name}.scales"]
    elif kind == "shape":
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"].t().contiguous()
    elif kind == "dtype":
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"].view(torch.uint8)
    elif kind == "infinite":
        tensors[f"{name}.scales"][3] = float("nan")
    elif kind == "extra":
        tensors["transformer.more"] = torch.zeros(3)
    elif kind == "foreign":
        config["quantization_config"]["quant_method"], config["model_type"] = "bitsandbytes", "gpt2"
    else:
        config["quantization_config"][kind] = 3
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=BROKEN[kind]):
        load_network(tmp_path)


def test_codes_go_nowhere_else(folders: dict[Kind, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folders["int8"]), "--out", str(tmp_path / "made" / "whole")]) == 2
    said = capsys.readouterr().err
    assert "int8 codes for inference" in said and "export the model that it was made from" in said
    assert not (tmp_path / "made").exists()
    assert main(["info", str(folders["int4"])]) == 0
    assert "GPT-2 model in int4 codes, for inference" in capsys.readouterr().out


def test_nothing_is_left_of_a_refused_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int4 would change a logit"):
        export_quantised(open_model("tiny"), tmp_path / "made" / "codes", "int4", 0.0)
    assert list(tmp_path.iterdir()) == []
