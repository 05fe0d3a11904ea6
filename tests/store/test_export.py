"""Exports are proven: figures of what was written, nothing above the bound, and other tools get the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens, tiny_config

from finetwo.app.cli import main
from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.store import export
from finetwo.store.change import probe_tokens
from finetwo.store.export import BOUNDS, export_model
from finetwo.store.folder import Extras, base_digest, load_network, save_model
from finetwo.store.models import open_model
from finetwo.store.peft import save_adapter
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def base(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64)
    save_model(tmp_path / "base", random_network(shape), tiny_tokenizer, Extras())
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    network = load_network(base)
    under = base_digest(network)
    network.add_lora(rank=4)
    fill_lora(network)
    extras = Extras(base=str(base), base_sha256=under)
    save_adapter(tmp_path / "adapter", network, tiny_tokenizer, extras)
    return tmp_path / "adapter"


def figures(folder: Path, before: Network, tokenizer: Tokenizer) -> tuple[float, float, float]:
    """Largest and mean difference of logits, and agreement, of a written folder, taken here."""
    probe = probe_tokens(tokenizer, before.config.n_positions)
    with torch.no_grad():
        a, b = before(probe), load_network(folder)(probe)
    gap = (a - b).abs()
    return float(gap.max()), float(gap.mean()), float((a.argmax(-1) == b.argmax(-1)).float().mean())


@pytest.mark.parametrize("dtype", ["bf16", "float16"])
def test_rounding_is_told_by_what_was_written(
    base: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, dtype: str
) -> None:
    said = export_model(open_model(str(base)), tmp_path / "out", "hf", dtype)
    largest, mean, agreement = figures(tmp_path / "out", load_network(base), tiny_tokenizer)
    assert 0 < mean < largest < BOUNDS[dtype]
    assert f"at most {largest:.2e} (mean {mean:.2e}; the bound is {BOUNDS[dtype]:g})" in said[0]
    assert f"same likeliest token at {agreement:.1%} of 512 positions" in said[0]
    assert said[1].startswith("perplexity ") and said[-1].startswith(f"hf written to {tmp_path / 'out'}; load it with")
    (kind,) = {str(t.dtype) for t in _raw(tmp_path / "out").values()}
    assert kind == {"bf16": "torch.bfloat16", "float16": "torch.float16"}[dtype]


def _raw(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_copy_changes_nothing_and_says_nothing(base: Path, tmp_path: Path) -> None:
    said = export_model(open_model(str(base)), tmp_path / "out", "auto", "float32")
    assert len(said) == 1 and said[0].startswith("hf written to")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_merging_is_proven_and_the_same_in_transformers(adapter: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    opened = open_model(str(adapter))
    tokens = random_tokens(2, 12, 300)
    with torch.no_grad():
        wanted = opened.network(tokens)
    said = export_model(opened, tmp_path / "new" / "merged", "auto", "float32")
    assert "the bound is 0.01" in said[0] and "at 100.0% of 512" in said[0] and "(+0.000%)" in said[1].replace("-", "+")
    twin = GPT2LMHeadModel.from_pretrained(tmp_path / "new" / "merged", attn_implementation="eager").eval()
    with torch.no_grad():
        assert difference(twin(tokens).logits, wanted) < 1e-4


def test_above_the_bound_nothing_is_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    for model, to, dtype, words in (
        (base, "hf", "bf16", "bf16 would change a logit by"),
        (adapter, "merged", "float16", "merging and float16 would change a logit by"),
    ):
        with pytest.raises(InputError) as caught:
            export_model(open_model(str(model)), tmp_path / "new" / "deep" / "out", to, dtype, 1e-6)
        line = caught.value.line()
        assert words in line and "the bound is 1e-06, and nothing was written" in line
        assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        export_model(open_model(str(base)), tmp_path / "empty", "hf", "bf16", 0.0)
    assert not list((tmp_path / "empty").iterdir()) and not list(tmp_path.glob(".tmp-*"))


def test_a_wrong_merge_is_refused(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = export.merge_lora

    def forgetful(network: Network) -> None:
        merge(network)
        with torch.no_grad():
            network.transformer.h[1].attn.c_attn.weight.mul_(1.05)

    monkeypatch.setattr(export, "merge_lora", forgetful)
    with pytest.raises(InputError, match="merging would change a logit"):
        export_model(open_model(str(adapter)), tmp_path / "out", "merged", "float32")
    assert not (tmp_path / "out").exists()


def test_a_weight_outside_the_format(base: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    network = load_network(base)
    with torch.no_grad():
        network.transformer.ln_f.bias[0] = 1e6
    save_model(tmp_path / "wide", network, tiny_tokenizer, Extras())
    with pytest.raises(InputError, match=r"--dtype float16: cannot hold a weight of this model, 1e\+06; nothing"):
        export_model(open_model(str(tmp_path / "wide")), tmp_path / "out", "hf", "float16")
    assert not (tmp_path / "out").exists()


def test_the_verb(base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(adapter), "--out", str(out), "--dtype", "bf16"]) == 0
    said = capsys.readouterr().err
    assert "logits changed by at most" in said and "perplexity" in said and "merged written to" in said
    assert main(["export", str(base), "--out", str(tmp_path / "b"), "--dtype", "bf16", "--max_difference", "0"]) == 2
    assert "--max_difference: bf16 would change a logit by" in capsys.readouterr().err
    for wrong in ("-1", "nan", "inf"):
        assert main(["export", str(base), "--out", str(tmp_path / "b"), f"--max_difference={wrong}"]) == 2
        assert "--max_difference" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
