"""What a plan keeps of the records that the certificate goes through: some for the eye, some for the numeric proof.

It knows records, their roles and prepared sets, and no network. Its one invariant: what it keeps does not grow with the
data, except for 8 bytes a record that tell which were left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from finetwo.data.examples import Loaded
from finetwo.data.sequences import IGNORE
from finetwo.insight.findings import Finding, Findings, spot
from finetwo.insight.laid import ANSWER, END, ROLES, Laid, Told
from finetwo.insight.proof import Sample, sample_of
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import Prepared

_PROVED, _AMONG, _SHORT = 3, 64, 256
"""The numeric proof takes the three shortest of the first 64 training records, 256 tokens of each."""


@dataclass(frozen=True)
class Shown:
    """A record for the eye: where it stands, and its text in stretches of one role."""

    where: str
    stretches: list[tuple[str, str]]


@dataclass
class Watch:
    """Keeps what is needed of the records that go by, the training records first."""

    tokenizer: Tokenizer
    wanted: int
    lengths: Counter[int] = field(default_factory=Counter)
    """Records by length: n stands for more than 2^(n-1) and up to 2^n tokens."""
    samples: list[Shown] = field(default_factory=list)
    proved: list[Told] = field(default_factory=list)
    _cut: Findings = field(default_factory=Findings)
    _seen: set[int] = field(default_factory=set)

    def hear(self, record: Laid, told: Told) -> None:
        """Take one record."""
        self.lengths[max(0, len(record.tokens) - 1).bit_length()] += 1
        if len(self.samples) < self.wanted:
            self.samples.append(Shown(record.where, self._stretches(record, told)))
        if len(self.proved) < _AMONG:
            self.proved.append(told)
        if not record.whole:
            self._cut.add("cut", spot(record.where, ""))
        self._seen.add(hash(record.where))

    def findings(self, loaded: Loaded) -> list[Finding]:
        """The records that were cut, and those of `loaded` that were left out."""
        for example in (e for part in loaded.splits.values() for e in part):
            if hash(example.where) not in self._seen:
                self._cut.add("too long", spot(example.where, ""))
        return self._cut.list()

    def _stretches(self, record: Laid, told: Told) -> list[tuple[str, str]]:
        pairs = ((ROLES[role], token) for token, role in zip(record.tokens.tolist(), told.roles.tolist(), strict=True))
        return _joined(pairs, self.tokenizer) + ([("class", record.label)] if record.label else [])


def _joined(tokens: Iterable[tuple[str, int]], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Tokens with their roles as stretches of text with one role each."""
    found: list[tuple[str, list[int]]] = []
    for role, token in tokens:
        if not found or found[-1][0] != role:
            found.append((role, []))
        found[-1][1].append(token)
    return [(role, tokenizer.decode(ids)) for role, ids in found]


def chunk_samples(made: Prepared, tokenizer: Tokenizer, count: int) -> list[Shown]:
    """Training sequences whose texts are not at hand: what is learned of them, and what is not."""
    found, stream = [], made.task.layout == "stream"
    data = made.splits()["train"]
    for i in range(min(count, len(data))):
        s = data.get(i, 0)
        learned = [False, *(s.targets[:-1] != IGNORE).tolist()]
        roles = ["answer" if stream or it else "prompt" for it in learned]
        ends = ["end" if token == tokenizer.eot else role for token, role in zip(s.tokens, roles, strict=True)]
        stretches = _joined(zip(ends, s.tokens.tolist(), strict=True), tokenizer)
        if made.labels:
            stretches.append(("class", made.labels[int(s.targets[-1])]))
        found.append(Shown(f"train: {'chunk' if stream else 'record'} {i + 1}", stretches))
    return found


def proof_sample(made: Prepared, told: Sequence[Told], context: int) -> Sample:
    """A few short training records; `told`, of the first of them, says where something may be learned.

    Where it says nothing (a stream, a folder of `finetwo prepare`) that is taken from the targets. `context` is the
    network's: one token of padding finds room in it.
    """
    short = min(_SHORT, context - 1)
    data = made.splits()["train"]
    known = told[: len(data)]
    numbers = sorted(range(len(known) or min(_AMONG, len(data))), key=lambda n: len(data.get(n, 0)))
    rows = []
    for number in numbers[:_PROVED]:
        s = data.get(number, 0)
        may = s.targets != IGNORE
        if made.labels:
            may[:] = [False] * (len(s) - 1) + [True]
        elif known:
            own = known[number]
            allowed = ((own.roles == ANSWER) | ((own.roles == END) & (own.answer_of >= 0)))[1:].tolist()
            may[:] = [*allowed, *[False] * (len(s) - len(allowed))][: len(s)]
        low = max(0, len(s) - short) if made.labels else max(0, min(int(may.argmax()) - short // 2, len(s) - short))
        part = slice(low, low + short)
        rows.append((s.tokens[part].tolist(), s.targets[part].tolist(), may[part].tolist(), [True] * len(may[part])))
    return sample_of(rows, short)
