"""What a person sees of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest

from finetwo.app.console import Console


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Say 3.", "'Say 3.'"),
        ({"instruction": "Say 3.", "prompt": "Say 3."}, "'Say 3.'"),
        ({"topic": "tea"}, """'{"topic": "tea"}'"""),
        ({"prompt": "", "topic": "tea"}, '"topic": "tea"'),
    ],
)
def test_samples_of_texts_and_records(
    prompt: str | Mapping[str, str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(io.StringIO()).hear({"event": "sample", "step": 5, "prompt": prompt, "texts": ["I say 3."]})
    line = capsys.readouterr().err
    assert shown in line
    assert "-> 'I say 3.'" in line
