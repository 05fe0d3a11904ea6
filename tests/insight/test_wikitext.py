"""WikiText's lines, joined as the published recipe joins the rows of its data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.insight.wikitext import join_rows, read_joined
from finetwo.text.tokenizer import Tokenizer


def test_rows_keep_their_line_feed_and_blank_ones_are_empty() -> None:
    assert join_rows(" \n = A = \n \n b\u2028c \n") == "\n\n = A = \n\n\n\n\n b\u2028c \n"
    assert join_rows("a\nb") == "a\n\n\nb"
    assert join_rows("") == ""


def test_only_one_text_is_joined(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_joined(tmp_path / "a.txt", RowsConfig(), lambda _: None) == [{"text": "one\n\n\n\n\ntwo\n"}]
    (tmp_path / "b.txt").write_text("x\n", encoding="utf-8")
    with pytest.raises(InputError, match="--wikitext: needs one text file"):
        read_joined(tmp_path, RowsConfig(), lambda _: None)


def test_the_test_file_has_the_known_number_of_tokens(shared_data: Path, gpt2_tokenizer: Tokenizer) -> None:
    """287,644: what transformers warns of for the joined WikiText-2 test set."""
    path = shared_data / "eval" / "wiki.test.raw"
    (record,) = read_joined(path, RowsConfig(format="txt"), lambda _: None)
    assert len(gpt2_tokenizer.encode(record["text"])) == 287_644
