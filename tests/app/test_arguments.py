"""Words and files to options: lists that keep their commas, JSON where it is JSON, and foreign names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetwo.app.arguments import cut, options_of, parse, split_list
from finetwo.app.cli import VERBS, main
from finetwo.app.foreign import OURS, REASONS, remedy
from finetwo.app.generate import GenerateArguments
from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.store.yaml import write_yaml

AWKWARD = [
    "a,b",
    ",",
    "\n",
    "\\n",
    "[INST]",
    '["x"]',
    "null",
    "1",
    "é\u2028\x7f😀",
    " x ",
    "---",
    "#",
    "'",
    '"',
    "a: b",
]


def read(*words: str, kind: type[Any] = TrainConfig) -> Any:
    return parse(kind, cut(words, options_of(kind)))


def refused(*words: str, kind: type[Any] = TrainConfig) -> str:
    with pytest.raises(InputError) as caught:
        read(*words, kind=kind)
    return caught.value.line()


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (",", [","]),
        ('["a,b", "c"]', ["a,b", "c"]),
        ("[]", []),
        ("[INST]", ["[INST]"]),
        ("[INST],</s>", ["[INST]", "</s>"]),
        ("[", ["["]),
        ("[" * 100_000, ["[" * 100_000]),
        ("[null]", ["[null]"]),
        (r"\n,x", ["\n", "x"]),
        (r'["\n", "\\n"]', ["\n", "\\n"]),
    ],
)
def test_a_list_is_json_only_where_it_is_json(text: str, items: list[str]) -> None:
    assert read(f"--sampling.stop={text}").sampling.stop == items


def test_numbers_may_be_a_json_list() -> None:
    assert read("--temperature", "[0,1]", kind=GenerateArguments).temperature == [0.0, 1.0]
    assert read("--temperature", "0,.5", kind=GenerateArguments).temperature == [0.0, 0.5]
    assert "list of numbers" in refused("--temperature", "[0,[1]]", kind=GenerateArguments)
    assert "list of numbers" in refused("--temperature", "[hot]", kind=GenerateArguments)


def test_escapes_are_for_shells_only() -> None:
    assert split_list(r"\n") == ["\\n"]
    assert split_list(r"\n", escapes=True) == ["\n"]


def test_every_text_survives_a_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    config = read()
    config.sampling.stop = AWKWARD
    write_yaml(path, to_dict(config))
    assert read("--config", str(path)) == config
    for text in AWKWARD:
        if text != "null":  # an optional text of that name is none
            config.template = text
            write_yaml(path, to_dict(config))
            assert read("--config", str(path)) == config
    assert main(["train", "--config", str(path), "--print_config"]) == 0
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert read("--config", str(path)) == config


def test_a_list_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        'sampling: {stop: ["\\n", "a,b"]}\nlora:\n  targets: [attn.c_attn, mlp.c_fc]\nfreeze: [wte, wpe]\ntrack: csv\n'
    )
    config = read("--config", str(path))
    assert config.sampling.stop == ["\n", "a,b"]
    assert config.lora.targets == "attn.c_attn,mlp.c_fc"
    assert config.freeze == "wte,wpe"
    assert config.track == ["csv"]
    path.write_text("epochs: [1, 2]\n")
    assert "epochs: must be a number (got [1, 2])" in refused("--config", str(path))
    path.write_text("model: [gpt2]\n")
    assert "must be text (got [gpt2])" in refused("--config", str(path))


def test_a_later_file_wins_and_the_command_line_over_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 1\nkeep: 3\nseed: 5\n")
    (tmp_path / "b.yaml").write_text("lr: 2\nkeep: 4\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = read("--lr", "3", *files)
    assert (config.lr, config.keep, config.seed) == (3.0, 4, 5)


@pytest.mark.parametrize("text", ["- 1\n", "[a, {b: c}]\n", "word\n"])
def test_a_file_that_is_no_mapping_is_named_plainly(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    line = refused("--config", str(tmp_path / "c.yaml"))
    assert "must be a mapping" in line
    assert "Node" not in line


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_and_prints_a_configuration(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, "train"] if verb == "tokenizer" else [verb]
    assert main([*words, "--print_config"]) == 0
    shown = capsys.readouterr().out
    path = tmp_path / "c.yaml"
    path.write_text(shown.replace("json: false", "json: true").replace("seed: 0", "seed: 7"), encoding="utf-8")
    assert main([*words, "--config", str(path), "--print_config"]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--config FILE" in text
    assert "--print_config" in text


def test_a_switch_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "d.jsonl", "--packing", "maybe"], ["train", "--data", "d.jsonl", "--packing", "maybe"]):
        assert main(words) == 2
        line = capsys.readouterr().err
        assert "--packing: is a switch: true, false or nothing may follow (got maybe)" in line
        assert "--no_packing" in line
    assert "true or false" in refused("--packing=maybe")
    assert main(["evaluate", "--exact_match", "model"]) == 2
    assert "a model and a data file" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["-x", "-lr", "--what is this"])
def test_a_word_with_a_dash_is_told_the_way_out(word: str) -> None:
    line = refused("tiny", word, kind=GenerateArguments)
    assert f"put -- before it: -- {word}" in line
    assert cut(["tiny", "--", word], options_of(GenerateArguments)).positional == ["tiny", word]
    assert cut(["tiny", "-5 degrees"], options_of(GenerateArguments)).positional == ["tiny", "-5 degrees"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("load_in_4bit", "here it is called --quantize nf4"),
        ("load-in-8bit", "here it is called --quantize int8"),
        ("qlora", "here it is called --quantize nf4"),
        ("load_best_model_at_end", "best/ is always kept"),
        ("logging_steps", "metrics.jsonl"),
        ("train_on_inputs", "loss is on the answer only"),
        ("num_beams", "sampling and greedy only"),
        ("dataset_num_proc", "not needed"),
        ("push_to_hub", "nothing leaves your machine"),
        ("hub_token", "HF_TOKEN"),
        ("training_args.logging_steps", "metrics.jsonl"),
        ("max_new_tokens", "--sampling.max_new_tokens"),
        ("do_sample", "--sampling.temperature 1"),
        ("lora", "--lora.rank"),
    ],
)
def test_foreign_names_are_answered(name: str, part: str) -> None:
    assert part in refused(f"--{name}", "1")


@pytest.mark.parametrize("name", ["logging_dir", "fsdp", "group_by_length", "tf32", "zzz"])
def test_what_is_far_off_is_not_guessed(name: str) -> None:
    assert refused(f"--{name}", "1").endswith("Fix: see --help")


def test_an_answer_names_what_the_verb_has() -> None:
    """No foreign name is sent to an option that is not there, and none is one of ours."""
    known = {kind: list(options_of(kind)) for kind in (TrainConfig, GenerateArguments)}
    every = {name for names in known.values() for name in names} | {"debug", "config", "print_config"}
    for name, ours in OURS.items():
        assert ours.split()[0].removeprefix("--") in every, name
        assert name not in REASONS
        for names in known.values():
            assert name in names or not remedy(name, names, "") or any(n in remedy(name, names, "") for n in names)
    assert not {*OURS, *REASONS} & {n for names in known.values() for n in names}
