"""From token ids to the text a reader may see: whole characters, and nothing of a stop string.

It knows no network and no sampling. Its one invariant: however the text is cut into tokens, the pieces joined are
`text[:at]`, where `at` is the first place in the whole text at which a stop string begins (the end if none does).
"""

from __future__ import annotations

from collections.abc import Sequence

from finetwo.text.tokenizer import StreamDecoder, Tokenizer


class StopFilter:
    """Lets text through until a stop string begins; what could still become one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(s) for s in self._stops), default=0)
        self._held = ""
        self.stopped = False
        """Whether a stop string was found; nothing comes out after that."""

    def push(self, text: str) -> str:
        """Take the next piece of text; return what is certain not to belong to a stop string."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        found = self._find(held)
        end = len(held) if found is None else found
        # A longer stop string may have begun before the one found; then the place of the cut is still open.
        begun = range(max(0, len(held) - self._longest + 1), end)
        cut = next((i for i in begun if any(s.startswith(held[i:]) for s in self._stops)), end)
        self.stopped = found is not None and cut == end
        self._held = "" if self.stopped else held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """Return what waits when no more text comes, up to a stop string if a whole one is in it."""
        found = self._find(self._held)
        self.stopped = self.stopped or found is not None
        text, self._held = self._held[:found], ""
        return text

    def _find(self, text: str) -> int | None:
        return min((at for s in self._stops if (at := text.find(s)) >= 0), default=None)


class AnswerText:
    """The text of one answer as its tokens come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._filter = StreamDecoder(tokenizer), StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._filter.stopped

    def push(self, token: int) -> str:
        """Return the text that is settled by `token` (possibly none)."""
        return self._filter.push(self._decoder.push(token))

    def flush(self) -> str:
        """Return the rest when no token follows; unfinished bytes become U+FFFD."""
        return self._filter.push(self._decoder.flush()) + self._filter.flush()
