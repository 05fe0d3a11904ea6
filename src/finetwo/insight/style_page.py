"""The style proof as a page for people.

It knows the JSON content of a style proof and how pages are written. Its one invariant: it shows figures of the JSON,
rounded, and computes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetwo.insight.page import Block, Page, Section, Table

Found = Mapping[str, Any]
_WHO = {"model": "the model", "base": "its base", "held_out": "the author, held out"}
_MOST_NAMES = 30
_MUCH = 0.05
"""Share of the longest n-grams from which on held-out text is taken to be training text."""


def style_page(found: Found) -> Page:
    """Return the page of a style proof."""
    page = Page(f"Style proof of {found['model']}, tuned from {found['base']}")
    page.sections = [_authorship(found), _copying(found), _extraction(found), _names(found)]
    if found["canaries"]:
        page.sections.insert(3, _canaries(found))
    if len(found["stages"]) > 2:  # more than the base and the model
        page.sections.append(_stages(found))
    return page


def percent(value: float | None) -> str:
    """A share in per cent; a dash where there is none."""
    return "-" if value is None else f"{value:.2%}"


def _range(interval: tuple[float, float] | None, form: str = "{:.2%}") -> str:
    return "" if interval is None else f" [{form.format(interval[0])}, {form.format(interval[1])}]"


def _authorship(found: Found) -> Section:
    a = found["authorship"]
    head = (
        f"AUC {a['auc']:.3f}{_range(a['auc_interval'], '{:.3f}')}: how often a held-out passage of the author "
        f"({a['passages_own']}) gains more by the tuning than one of others ({a['passages_others']}). 0.5 is chance, 1 "
        "perfect."
    )
    gain = (
        f"Gain a token over the base: own {a['ratio_own']:+.4f} nats, others {a['ratio_others']:+.4f}. Perplexity of "
        f"the author's held-out text: {a['perplexity_own_base']:.2f} before, {a['perplexity_own']:.2f} after."
    )
    rows = [(file, f"{one['auc']:.3f}", f"{one['passages']:,}") for file, one in a["against"].items()]
    blocks: list[Block] = [head, gain, Table(("against", "AUC", "passages"), rows), found["protocol"]["authorship"]]
    return Section("Does it write like its author?", blocks)


def _copying(found: Found) -> Section:
    copying = found["copying"]
    orders = [n for n in copying["model"] if n.isdigit()]
    rows = [
        (
            name,
            *(percent(copying[who][n]["rate"]) + _range(copying[who][n]["interval"]) for n in orders),
            f"{copying[who]['longest']} tokens",
        )
        for who, name in _WHO.items()
    ]
    blocks: list[Block] = [Table(("copied word for word", *(f"{n}-grams" for n in orders), "longest"), rows)]
    spans = [(f"{s['tokens']}", s["text"], s["where"]) for s in copying["spans"]]
    if spans:
        blocks.append(Table(("tokens", "the longest copies", "stand in the training text"), spans))
    natural = copying["held_out"][orders[-1]]["rate"]
    if natural is not None and natural > _MUCH:
        warning = (
            f"Careful: {percent(natural)} of the {orders[-1]}-grams of the held-out text stand in the training text. "
            "An author does not repeat himself so much: it seems to hold the same text, and proves little."
        )
        blocks.insert(0, warning)
    return Section("How much of it is copied?", [*blocks, found["protocol"]["copying"]])


def _extraction(found: Found) -> Section:
    def cell(one: Found) -> str:
        return f"{one['recited']} of {one['tried']}, {percent(one['rate'])}{_range(one['interval'])}"

    names = ("train", "held_out", "base_train", "base_held_out")
    rows = [(label, *(cell(one[name]) for name in names)) for label, one in found["extraction"].items()]
    header = ("given", "training text", "held-out text", "base, training text", "base, held-out text")
    none = "The model's context is too short for this test."
    return Section(
        "Does it recite its training text?", [Table(header, rows) if rows else none, found["protocol"]["extraction"]]
    )


def _canaries(found: Found) -> Section:
    def told(one: Found) -> str:
        if not one["in_training"]:
            return "not in the training text"
        return ("found" if one["found"] else "not found") + (", by the base too" if one["found_by_base"] else "")

    rows = [(one["sentence"], told(one)) for one in found["canaries"]]
    count = sum(one["found"] for one in found["canaries"])
    head = f"{count} of {len(rows)} planted sentences are recited."
    return Section("Planted sentences", [head, Table(("sentence", "result"), rows), found["protocol"]["canaries"]])


def _names(found: Found) -> Section:
    names = found["names"]
    rows = [
        (n["name"], f"{n['generations']}", f"{n['in_training']}", "yes" if n["in_held_out"] else "no")
        for n in names["carried"][:_MOST_NAMES]
    ]
    total = len(names["carried"])
    more = f" (the {_MOST_NAMES} most frequent)" if total > _MOST_NAMES else ""
    head = (
        f"{total} of {names['names_in_training']} names of the training text{more}, in {names['generations_with_one']}"
    )
    blocks: list[Block] = [f"{head} continuations."]
    if rows:
        blocks.append(Table(("name", "continuations", "times in training text", "also in held-out text"), rows))
    return Section("Names carried over", [*blocks, found["protocol"]["names"]])


def _stages(found: Found) -> Section:
    titles = {"perplexity_own": "perplexity, held out", "auc": "AUC", "longest": "longest copy", "canaries": "planted"}
    names = [n for n in found["stages"][0] if n != "stage"]
    if not found["canaries"]:
        names.remove("canaries")

    def cell(name: str, value: Any) -> str:
        if name.startswith(("copied", "extracted")):
            return percent(value)
        return f"{value:.3f}" if isinstance(value, float) else f"{value}"

    rows = [(one["stage"], *(cell(n, one[n]) for n in names)) for one in found["stages"]]
    header = ("stage", *(titles.get(n, n.replace("_", " ")) for n in names))
    return Section("The trade-off over the run: what is gained, and what is copied", [Table(header, rows)])
