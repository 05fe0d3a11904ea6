"""Classifiers in folders: into transformers and PEFT and back with the same logits; names, pooling, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network
from torch import Tensor

from finetwo.core.errors import InputError
from finetwo.data.batch import pack
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.generate.predict import open_predictor
from finetwo.model.attend import Packed
from finetwo.model.config import GPT2Config, Pooling
from finetwo.model.network import Network
from finetwo.store.export import export_model
from finetwo.store.folder import Extras, load_network, load_tokenizer, read_config, read_extras, save_model
from finetwo.store.models import open_model
from finetwo.store.peft import save_adapter
from finetwo.text.tokenizer import Tokenizer

LABELS = ("sad", "très gai", "so, so")
EXTRAS = Extras(task="classify", temperature=1.7, max_length=17)


def classifier(tiny_shape: GPT2Config, pooling: Pooling = "last") -> Network:
    network = random_network(tiny_shape)
    network.add_classes(LABELS, pooling, seed=1)
    with torch.no_grad():
        assert network.score is not None
        network.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    return network


def rows(vocab: int) -> tuple[Tensor, list[Sequence]]:
    """Right-padded rows of ids, the last id standing for padding, and the same as documents."""
    generator, padded, found = torch.Generator().manual_seed(3), torch.full((4, 13), vocab - 1), []
    for i, length in enumerate((13, 1, 6, 9)):
        tokens = torch.randint(0, vocab - 1, (length,), generator=generator)
        padded[i, :length] = tokens
        targets = np.full(length, IGNORE, dtype=np.int32)
        targets[-1] = 0
        found.append(Sequence(tokens.numpy().astype(np.int32), targets))
    return padded, found


def logits(network: Network) -> Tensor:
    batch = pack(rows(network.config.vocab_size)[1])
    tokens, positions, targets = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.targets))
    with torch.no_grad():
        return network.eval().class_logits(tokens, positions, targets, Packed(positions))


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(rows(400)[0]).logits
    return found


# --- transformers -----------------------------------------------------------------------------------------------------


def test_our_folder_loads_in_transformers(tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForSequenceClassification

    network = classifier(tiny_shape)
    save_model(tmp_path, network, tiny_tokenizer, EXTRAS)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__name__ == "GPT2ForSequenceClassification"
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.label2id[LABELS[1]] == 1
    assert model.config.pad_token_id == tiny_tokenizer.eot and model.config.num_labels == 3
    assert difference(theirs(model), logits(network)) < 1e-5


def test_the_pipeline_of_transformers_takes_several_texts(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer
) -> None:
    """Its tokenizer needs a padding token for that, and must not take a mark in a text for one."""
    from transformers import pipeline

    save_model(
        tmp_path, classifier(replace(tiny_shape, n_positions=64)), tiny_tokenizer, replace(EXTRAS, max_length=64)
    )
    marked = ["it ends in <|endoftext|>", "<|endoftext|>", "a <|endoftext|> b"]  # plain text here, padding there
    texts = ["the lamp", "who?", "the harbour went out", *marked]
    found = pipeline("text-classification", model=str(tmp_path), top_k=None)(texts, batch_size=3)
    predictor = open_predictor(str(tmp_path))
    predictor.temperature = 1.0
    for ours, other in zip(predictor.predict({"text": t} for t in texts), found, strict=True):
        assert ours.probabilities == pytest.approx({e["label"]: e["score"] for e in other}, abs=1e-5)


def test_pairs_keep_their_separator_in_transformers(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer
) -> None:
    """Written as a text or as ids, the separator is one token there, and read like any other."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    save_model(tmp_path, classifier(replace(tiny_shape, n_positions=64)), tiny_tokenizer, Extras(task="entail"))
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForSequenceClassification
    pairs = [("the lamp", "it is out"), ("who?", "nobody answered, for the wind")]
    inputs = tokenizer([a + tokenizer.eos_token + b for a, b in pairs], padding=True, return_tensors="pt")
    with torch.no_grad():
        shares = model.from_pretrained(tmp_path).eval()(**inputs).logits.softmax(-1).tolist()
    predictor = open_predictor(str(tmp_path))
    found = predictor.predict({"first": a, "second": b} for a, b in pairs)
    assert [list(one.probabilities.values()) for one in found] == [pytest.approx(share, abs=1e-5) for share in shares]


@pytest.mark.parametrize("names", [{}, {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}])
def test_a_classifier_of_transformers_loads_here(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer, names: dict[str, Any]
) -> None:
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2ForSequenceClassification

    shape = {k: v for k, v in tiny_shape.to_dict().items() if k not in ("architectures", "torch_dtype")}
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(HFConfig(**shape, pad_token_id=399, **names))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    network = load_network(tmp_path)
    assert network.config.labels == (("no", "yes") if names else ("LABEL_0", "LABEL_1"))
    assert difference(theirs(model), logits(network)) < 1e-5
    assert open_predictor(str(tmp_path)).labels == network.config.labels


def test_save_load_save_gives_the_same_bytes(tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> None:
    for pooling in ("last", "mean"):
        one, two = tmp_path / pooling / "1", tmp_path / pooling / "2"
        save_model(one, classifier(tiny_shape, pooling), tiny_tokenizer, EXTRAS)
        again = load_network(one)
        assert again.config.labels == LABELS and again.config.pooling == pooling
        save_model(two, again, load_tokenizer(one, again.config), read_extras(one))
        for path in one.iterdir():
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_is_kept_and_what_transformers_cannot_run_it_does_not_take(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer, pooling: Pooling, post_norm: bool
) -> None:
    from dataclasses import replace

    from transformers import AutoModelForSequenceClassification

    network = classifier(replace(tiny_shape, post_norm=post_norm), pooling)
    save_model(tmp_path, network, tiny_tokenizer, EXTRAS)
    again = load_network(tmp_path)
    assert again.config == network.config
    assert difference(logits(again), logits(network)) == 0
    if post_norm or pooling == "mean":
        with pytest.raises(ValueError, match="does not recognize this architecture"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert "GPT2ForSequenceClassification" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": {"0": "a"}}, "a head of one output is a regression"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must map 0, 1, 2"),
        ({"id2label": {"0": "a", "1": "a"}}, "must be texts, each another"),
        ({"id2label": {"0": "a", "1": 5}}, "must be texts, each another"),
        ({"id2label": ["a", "b"]}, "id2label must map"),
        ({"id2label": {}}, "id2label must map"),
        ({"problem_type": "multi_label_classification"}, "problem_type is not supported"),
        ({"problem_type": "regression"}, "problem_type is not supported"),
        ({"id2label": None, "num_labels": 1}, "num_labels must be an integer from 2"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels must be an integer from 2"),
        ({"id2label": {"0": "a", "1": "b"}}, "score.weight must have shape [2, 24] (got [3, 24])"),
        ({"pooling": "max"}, "pooling must be last or mean"),
        ({"pooling": "mean"}, "do not go with model_type (got gpt2)"),
    ],
    ids=str,
)
def test_damaged_configs(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer, changes: dict[str, Any], said: str
) -> None:
    save_model(tmp_path, classifier(tiny_shape), tiny_tokenizer, EXTRAS)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError) as caught:
        load_network(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"temperature": "1"}, "temperature must be a number above 0"),
        ({"temperature": True}, "temperature must be a number above 0"),
        ({"max_length": 0}, "max_length must be an integer >= 1"),
        ({"max_length": 2.5}, "max_length must be an integer >= 1"),
        ({"labels": ["a", "a"]}, "labels must be a list of different texts"),
        ({"labels": "ab"}, "labels must be a list of different texts"),
        ({"pooling": "max"}, "pooling must be last or mean"),
    ],
    ids=str,
)
def test_damaged_extras(
    tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer, changes: dict[str, Any], said: str
) -> None:
    save_model(tmp_path, classifier(tiny_shape), tiny_tokenizer, EXTRAS)
    path = tmp_path / "finetwo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"finetwo\.json") as caught:
        read_extras(tmp_path)
    assert said in str(caught.value)


# --- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "base", random_network(tiny_shape), tiny_tokenizer, Extras())
    return tmp_path / "base"


def tuned(base: Path, tiny_shape: GPT2Config, tokenizer: Tokenizer, pooling: Pooling = "last") -> tuple[Path, Tensor]:
    """An adapter folder on the base, with a head of its own, and its logits."""
    network = classifier(tiny_shape, pooling)
    network.add_lora(rank=3)
    fill_lora(network)
    folder = base.with_name("adapter")
    save_adapter(folder, network, tokenizer, Extras(task="classify", base=str(base), temperature=2.0, max_length=9))
    return folder, logits(network)


def hf_base(base: Path) -> Any:
    from transformers import GPT2ForSequenceClassification

    return GPT2ForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=399)


def test_our_adapter_loads_in_peft(base: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> None:
    from peft import PeftModel

    folder, wanted = tuned(base, tiny_shape, tiny_tokenizer)
    model = PeftModel.from_pretrained(hf_base(base), str(folder))
    assert type(model).__name__ == "PeftModelForSequenceClassification"
    assert difference(theirs(model), wanted) < 1e-5
    assert difference(theirs(model.merge_and_unload()), wanted) < 1e-5


@pytest.mark.parametrize(
    "settings", [{}, {"modules_to_save": ["score"]}, {"target_modules": "all-linear"}], ids=["plain", "named", "all"]
)
def test_an_adapter_trained_by_peft_loads_here(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(**{"task_type": TaskType.SEQ_CLS, "r": 4, "target_modules": ["c_attn"], **settings})
    torch.manual_seed(1)
    model = get_peft_model(hf_base(base), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(rows(400)[0], labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(tmp_path / "peft"))
    opened = open_model(str(tmp_path / "peft"), str(base))
    assert opened.network.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert difference(logits(opened.network), theirs(model)) < 1e-5
    assert next(open_predictor(str(tmp_path / "peft"), str(base)).predict([{"text": "a lamp"}])).label is not None


def test_an_adapter_keeps_names_temperature_and_pooling(
    base: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer
) -> None:
    folder, wanted = tuned(base, tiny_shape, tiny_tokenizer, "mean")
    opened = open_model(str(folder))
    assert opened.is_adapter and opened.network.config.labels == LABELS
    assert (opened.network.config.pooling, opened.extras.temperature, opened.extras.max_length) == ("mean", 2.0, 9)
    assert difference(logits(opened.network), wanted) == 0
    predictor = open_predictor(str(folder))
    assert (predictor.temperature, predictor.max_length, predictor.labels) == (2.0, 9, LABELS)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (torch.zeros(3, 768), "score.weight must have shape [classes, 24] (got [3, 768] torch.float32)"),
        (torch.zeros(24), "score.weight must have shape [classes, 24]"),
        (torch.zeros(3, 24, dtype=torch.int64), "score.weight must have shape [classes, 24]"),
        (torch.full((3, 24), torch.nan), "score.weight holds NaN or infinite values"),
    ],
    ids=["width", "flat", "integers", "nan"],
)
def test_damaged_heads(base: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer, head: Tensor, said: str) -> None:
    from finetwo.store.tensors import read_tensors, write_tensors

    folder, _ = tuned(base, tiny_shape, tiny_tokenizer)
    path = folder / "adapter_model.safetensors"
    write_tensors(path, {**read_tensors(path), "base_model.model.score.weight": head})
    with pytest.raises(InputError) as caught:
        open_model(str(folder))
    assert said in str(caught.value)


# --- export -----------------------------------------------------------------------------------------------------------


def test_a_merged_adapter_equals_in_transformers(
    base: Path, tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, wanted = tuned(base, tiny_shape, tiny_tokenizer)
    said = export_model(open_model(str(folder)), tmp_path / "merged", "auto", "float32")
    assert "same likeliest class at" in said[0]
    assert said[-1].endswith("load it with transformers.GPT2ForSequenceClassification.from_pretrained(FOLDER)")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert model.config.id2label == dict(enumerate(LABELS))
    assert difference(theirs(model), wanted) < 1e-5
    again = open_model(str(tmp_path / "merged"))
    assert again.extras.temperature == 2.0 and again.extras.max_length == 9 and again.extras.base is None


def test_an_exported_adapter_loads_in_peft(
    base: Path, tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer
) -> None:
    from peft import PeftModel

    folder, wanted = tuned(base, tiny_shape, tiny_tokenizer)
    said = export_model(open_model(str(folder)), tmp_path / "out", "adapter", "float32")
    assert "GPT2ForSequenceClassification.from_pretrained(BASE, num_labels=3), FOLDER)" in said[-1]
    assert difference(theirs(PeftModel.from_pretrained(hf_base(base), str(tmp_path / "out"))), wanted) < 1e-5


def test_what_loads_an_export_is_told(tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> None:
    for pooling, task, told in (
        ("mean", "classify", "finetwo (no other tool knows a head over the mean of a text)"),
        ("last", "entail", "from_pretrained(FOLDER); between the texts of a pair goes the end-of-text token"),
    ):
        save_model(tmp_path / pooling, classifier(tiny_shape, pooling), tiny_tokenizer, Extras(task=task, max_length=9))
        said = export_model(open_model(str(tmp_path / pooling)), tmp_path / f"{pooling}-out", "hf", "float32")
        assert said[-1].endswith(told)


def test_half_precision(tmp_path: Path, tiny_shape: GPT2Config, tiny_tokenizer: Tokenizer) -> None:
    network = classifier(tiny_shape)
    save_model(tmp_path / "model", network, tiny_tokenizer, EXTRAS)
    said = export_model(open_model(str(tmp_path / "model")), tmp_path / "half", "hf", "float16")
    assert "logits changed by at most" in said[0] and "likeliest class" in said[0]
    assert difference(logits(load_network(tmp_path / "half")), logits(network)) < 0.05
    assert read_config(tmp_path / "half").labels == LABELS
