"""Marks of damage in a text: broken encoding, control characters, remains of HTML, words of prompt templates.

It knows texts only. Its one invariant: whole, clean text in any language bears no mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from finetwo.text.template import Template

WORDS = (
    "### Instruction:",
    "### Input:",
    "### Context:",
    "### Response:",
    "### System:",
    "### User:",
    "### Assistant:",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
)
"""What common prompt templates write around a prompt."""
# The bytes 0x80 to 0xBF as Latin-1 and Windows-1252 read them.
_REST = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
# A lone letter in quotation marks, and one that ends a word in capitals before a mark or a fixed blank, are no damage.
_MOJIBAKE = re.compile(
    rf"(?<![A-ZÀ-Þ])[ÂÃ](?!(?<=[„“”«»‘’‚][ÂÃ])[“”«»‘’])[{_REST}]|(?<=[A-ZÀ-Þ])[ÂÃ](?![\u00a0«»‘’“”…–—•])[{_REST}]"
    rf"|â[€\u0080][{_REST}]|â[‚\u0082]¬|â[„\u0084]¢|ð[Ÿ\u009f][{_REST}]|ï»¿|ï¿½"
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\u0080-\u0084\u0086-\u009f]")
_HTML = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});"
    r"|</?(?:a|b|i|u|p|br|hr|em|h[1-6]|ul|ol|li|td|th|tr|div|img|pre|span|font|html|head|body|code|table|tbody|thead"
    r"|strong|script|style|blockquote)(?:\s+[\w-]+\s*=[^<>]{0,500})?\s*/?>",
    re.IGNORECASE,
)
_REPLACED = re.compile("\ufffd")
_PATTERNS = {
    "replacement character": _REPLACED,
    "mojibake": _MOJIBAKE,
    "control characters": _CONTROL,
    "html": _HTML,
}


def template_pattern(template: Template | None) -> re.Pattern[str]:
    """Return what finds words of templates: the common ones, and the headings of the template in use."""
    own: set[str] = set()
    if template is not None:
        for text in (template.text, template.with_input):
            for piece in re.split(r"\{[^{}]*\}|\n", text):
                heading = piece.strip()
                if len(heading) >= 5 and heading.endswith(":"):
                    own.add(heading)
    return re.compile("|".join(re.escape(word) for word in sorted({*WORDS, *own}, key=lambda w: (-len(w), w))))


def patterns(template: Template | None) -> dict[str, re.Pattern[str]]:
    """Return the pattern of each kind of mark."""
    return {"template words": template_pattern(template), **_PATTERNS}


def look(kind: str, pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    """The first mark of `kind` from `start` on; most texts are told to have none without a search."""
    if kind in ("replacement character", "mojibake") and text.isascii():
        return None
    if kind == "html" and "<" not in text and "&" not in text:
        return None
    return pattern.search(text, start)


def marks(texts: Iterable[str], found: dict[str, re.Pattern[str]]) -> Iterator[tuple[str, str, int, int]]:
    """Yield for each kind that some text bears: the kind, that text, and where in it."""
    left = dict(found)
    for text in texts:
        for kind, pattern in list(left.items()):
            match = look(kind, pattern, text)
            if match is not None:
                del left[kind]
                yield kind, text, match.start(), match.end()
