"""The plan as one HTML page that needs nothing but itself: no script, no address, every text escaped.

It knows the JSON content of a plan and nothing of how it came about. Its one invariant: whatever a text of the data
holds, it is shown and never interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from finetwo.core.errors import shown

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2127;
  background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #d5d9de; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #7b9fc7; height: .8rem; display: inline-block; }
.ok { color: #17693a; } .bad { color: #a8200d; font-weight: 600; } .where { color: #5a6470; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #d5d9de; border-radius: 4px; padding: .6rem; }
.prompt { background: #e4eaf2; } .header { background: #ececec; color: #5a6470; } .answer { background: #cdecd4; }
.end { background: #2f7d4b; color: #fff; } .padding { background: #fff; color: #999; } .other { background: #f6c7bf; }
.class { background: #f3e3a8; margin-left: .4rem; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
"""


def page(plan: Mapping[str, Any]) -> str:
    """Return the page of a plan's JSON content."""
    strict = plan["strict"]
    verdict = _status(strict["ok"], "--strict would pass", "--strict would refuse this data")
    parts = [
        f"<h1>Plan: {_text(plan['task'])} on {_text(plan['data'])}</h1><p>{verdict}</p>",
        _section("Detected", _list(plan["said"])),
        _section("Findings", _findings(plan["findings"], plan["notes"])),
        _section("Counts", _bars(plan["counts"])),
        _section("Lengths", _bars(plan["lengths"])) if plan["lengths"] else "",
        *(_section(f"Classes: {name}", _bars(part)) for name, part in plan["labels"].items()),
        _section("Loss-coverage certificate", _certificate(plan["certificate"])),
        _section("Samples", _samples(plan["samples"])),
        _section("Estimate", _list(plan["estimate"]["words"])),
    ]
    head = f'<meta charset="utf-8"><title>Plan: {_text(plan["data"])}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _text(text: object) -> str:
    """A text on one line: control characters spelled out, HTML escaped."""
    return escape(shown(text, 600))


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{body}"


def _status(ok: bool, good: str, bad: str) -> str:
    return f'<span class="ok">{escape(good)}</span>' if ok else f'<span class="bad">{escape(bad)}</span>'


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _bars(counts: Mapping[str, int]) -> str:
    top = max(counts.values(), default=0) or 1
    rows = (
        f'<tr><th>{_text(name)}</th><td class="n">{count:,}</td>'
        f'<td><span class="bar" style="width:{18 * count / top:.2f}rem"></span></td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _findings(findings: Iterable[Mapping[str, Any]], notes: Iterable[str]) -> str:
    found = []
    for f in findings:
        spots = "".join(
            f'<li><span class="where">{_text(s["where"])}</span> {_text(s["text"])}</li>' for s in f["spots"]
        )
        if f["count"] > len(f["spots"]) > 0:
            spots += f"<li>and {f['count'] - len(f['spots']):,} more</li>"
        kind = "bad" if f["strict"] else "where"
        head = f'<p><span class="{kind}">{_text(f["kind"])}</span>: {f["count"]:,} {_text(f["about"])}</p>'
        found.append(f"{head}<ul>{spots}</ul>")
    body = "".join(found) or '<p class="ok">nothing found</p>'
    return body + "".join(f"<p>{_text(note)}</p>" for note in notes)


def _certificate(certificate: Mapping[str, Any]) -> str:
    tokens, learned = certificate["tokens"], certificate["learned"]
    rows = "".join(
        f"<tr><th>{_text(role)}</th><td class='n'>{tokens.get(role, 0):,}</td><td class='n'>{count:,}</td></tr>"
        for role, count in learned.items()
        if count or tokens.get(role)
    )
    checks = "".join(
        f"<tr><td>{_status(c['ok'], 'ok', 'FAILED')}</td><td>{_text(c['name'])}</td><td class='n'>{c['of']:,}</td>"
        f"<td>{_text(_failure(c))}</td></tr>"
        for c in certificate["checks"]
    )
    proof = certificate["proof"]
    words = f"<p>{_status(proof['ok'], 'ok', 'FAILED')} numeric proof: {_text(proof['words'])}</p>" if proof else ""
    head = "<tr><th>role</th><th>tokens</th><th>in the loss</th></tr>"
    looked = "<tr><th></th><th>check</th><th>looked at</th><th></th></tr>"
    return f"<table>{head}{rows}</table><br><table>{looked}{checks}</table>{words}"


def _failure(check: Mapping[str, Any]) -> str:
    if check["ok"]:
        return ""
    return f"{check['failed']:,} {check['about']}: " + "; ".join(check["places"][:5])


def _samples(samples: Iterable[Mapping[str, Any]]) -> str:
    samples = list(samples)
    there = {role for sample in samples for role, _ in sample["stretches"]}
    roles = [r for r in ("prompt", "header", "answer", "end", "class", "other") if r in there]
    found = ["<p>" + " ".join(f'<span class="{r}">&nbsp;{r}&nbsp;</span>' for r in roles) + "</p>"]
    for sample in samples:
        spans = "".join(f'<span class="{escape(role)}">{_lines(text)}</span>' for role, text in sample["stretches"])
        found.append(f'<p class="where">{_text(sample["where"])}</p><pre>{spans}</pre>')
    return "".join(found)


def _lines(text: str) -> str:
    """A text with its line breaks, anything else that does not print spelled out, cut after 4,000 characters."""
    cut = text[:4000] + ("…" if len(text) > 4000 else "")
    return "\n".join(escape(shown(line, 4001)) for line in cut.split("\n"))
