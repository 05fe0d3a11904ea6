"""Which files of a data set are which split; the lists of names are those of published data sets."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetwo.core.errors import InputError
from finetwo.store.hub_layout import _pattern, choose, read_configs

WHERE = "some/set"


def card(*configs: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump({'license': 'mit', 'configs': list(configs)})}---\n# Text\n---\n"


@pytest.mark.parametrize(
    ("names", "config", "found"),
    [
        (
            ["README.md", "databricks-dolly-15k.jsonl", ".gitattributes"],
            None,
            {"train": ["databricks-dolly-15k.jsonl"]},
        ),
        (
            ["README.md", "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"],
            None,
            {"train": ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"]},
        ),
        (["train.csv", "test.csv", "dataset_infos.json"], None, {"test": ["test.csv"], "train": ["train.csv"]}),
        (
            ["rte/train-00000-of-00001.parquet", "rte/validation-00000-of-00001.parquet", "sst2/train.parquet"],
            "rte",
            {
                "train": ["rte/train-00000-of-00001.parquet"],
                "validation": ["rte/validation-00000-of-00001.parquet"],
            },
        ),
        (["default/train/0000.parquet", "default/test/0000.parquet"], None,
         {"test": ["default/test/0000.parquet"], "train": ["default/train/0000.parquet"]}),
        (["default/partial-train/0000.parquet"], None, {"train": ["default/partial-train/0000.parquet"]}),
        (["train/a.jsonl", "train/b.jsonl", "dev/c.jsonl"], None,
         {"validation": ["dev/c.jsonl"], "train": ["train/a.jsonl", "train/b.jsonl"]}),
        (["my_train.jsonl", "notes.txt"], None, {"train": ["my_train.jsonl"], "other files": ["notes.txt"]}),
    ],
)  # fmt: skip
def test_by_the_names(names: list[str], config: str | None, found: dict[str, list[str]]) -> None:
    assert choose(names, "", config, WHERE) == found


def test_by_the_card() -> None:
    names = ["README.md", "a/train-0.parquet", "a/train-1.parquet", "a/deep/er/dev.csv", "b.jsonl", "b.py"]
    named = card(
        {
            "config_name": "a",
            "data_files": [
                {"split": "train", "path": "a/train-*"},
                {"split": "dev", "path": ["a/**/*.csv"]},
            ],
        },
        {"config_name": "b", "data_files": "b.jsonl", "default": True},
        {"config_name": 2020, "data_dir": "a"},
    )
    assert choose(names, named, "a", WHERE) == {
        "train": ["a/train-0.parquet", "a/train-1.parquet"],
        "validation": ["a/deep/er/dev.csv"],
    }
    assert choose(names, named, None, WHERE) == {"train": ["b.jsonl"]}
    assert choose(names, named, "2020", WHERE)["train"] == ["a/train-0.parquet", "a/train-1.parquet"]
    assert choose(["x.csv"], "---\nlicense: mit\n---\n", None, WHERE) == {"train": ["x.csv"]}


@pytest.mark.parametrize("path", ["https://elsewhere.example/x.jsonl", "../x.jsonl", "/etc/passwd", "x.zip", None, 7])
def test_a_card_cannot_lead_elsewhere(path: object) -> None:
    named = card({"config_name": "a", "data_files": [{"split": "train", "path": path}]})
    with pytest.raises(InputError, match="names files that are not there, or that cannot be read"):
        choose(["x.zip", "y.jsonl"], named, None, WHERE)


def test_several_configurations_are_listed() -> None:
    with pytest.raises(InputError, match=r"has several configurations: de, en. Fix: hub:some/set/de@v1"):
        choose(["de/train.csv", "en/train.csv"], "", None, "some/set@v1")
    with pytest.raises(InputError, match=r"no such configuration; there are de, en \(got fr\)"):
        choose(["de/train.csv", "en/train.csv"], "", "fr", WHERE)
    with pytest.raises(InputError, match=r"has no configurations \(got fr\)"):
        choose(["train.csv"], "", "fr", WHERE)


@pytest.mark.parametrize(
    "head",
    [
        "a: !!python/object/apply:os.system ['true']",
        "a: [",
        "a: &x [1]\n" + "b: [" + "*x," * 200 + "]",
        "- 1",
        "configs: 7",
        "configs:\n- 7\n- config_name: a",
        "a: 2020-99-99",
    ],
)
def test_a_hostile_head_runs_nothing(head: str) -> None:
    try:
        assert read_configs(f"---\n{head}\n---\n", WHERE) == []
    except InputError as error:
        assert "not plain YAML" in str(error)


@given(st.text("ab*?/.", max_size=8), st.text("ab/.", max_size=8))
def test_patterns_agree_with_the_standard_library_within_a_name(pattern: str, name: str) -> None:
    if "**" in pattern:
        return
    same = pattern.count("/") == name.count("/") and all(
        fnmatch.fnmatchcase(n, p) for n, p in zip(name.split("/"), pattern.split("/"), strict=True)
    )
    assert bool(_pattern(pattern).fullmatch(name)) == same
