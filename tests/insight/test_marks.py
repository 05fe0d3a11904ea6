"""Marks of damage: all that is damaged in each of two ways is told, and clean text in many languages bears none."""

from __future__ import annotations

import pytest

from finetwo.insight.marks import marks, patterns

CLEAN = [
    "L'été à Noël: «Où êtes-vous?» – naïf, cœur, Â, Ã.",
    "NÃO É SÃO PAULO: MAÇÃ, IRMÃ… AMANHÃ\u00a0vem. “Ã” „Â” ‘Ã’",
    "Größe Öl ÄÖÜß Straße",
    "Þórr Æsir Ångström",
    "Từ điển tiếng Việt: ÂM NHẠC, LÃNH ĐẠO",
    "România: „înțelegere” ÎN ÂNGER",
    "Привет мир, це Україна",
    "漢字かな交じり文、한국어 العربية עברית हिन्दी ไทย",
    "🙂👩‍👩‍👧 ½ × ÷ ° £ € ¥ © ™ “quotes” ‘so’ — … •",
    "if a < b and c > d: x = y & z; print(a<c>b)[0:1] <3 <-> <= => &&",
    "Tabs\tand\r\nlines\x0cand a new\x85line",
]
DAMAGED = "é à ö Ö ü ß ñ ç Å Ã — – ’ “ … € £ ° « » 🙂 ™".split()


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_bears_no_mark(text: str) -> None:
    assert list(marks([text], patterns(None))) == []


@pytest.mark.parametrize("character", DAMAGED)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_utf8_read_as_another_encoding_is_told(character: str, encoding: str) -> None:
    for text in (f"caf{character} x", f"{character} x", f"x {character}"):
        wrong = text.encode().decode(encoding, "replace")
        kinds = {kind for kind, *_ in marks([wrong], patterns(None))}
        assert kinds & {"mojibake", "replacement character"}, wrong


def test_a_mark_is_told_once_a_record_with_its_place() -> None:
    found = sorted(marks(["clean", "a <b>bold</b> \x00 word", "<i>"], patterns(None)))
    assert [(kind, text[start:end]) for kind, text, start, end in found] == [
        ("control characters", "\x00"),
        ("html", "<b>"),
    ]
