"""Comparisons: answers side by side, KL both ways, classifiers' disagreements, and hostile text made harmless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tests.standins.chat import chatting
from tests.standins.models import TEXT, random_network, tiny_config

from finetwo.core.config import RowsConfig, SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.comparing import Asking, answers_page, classes_page, compare_answers, compare_classes
from finetwo.insight.divergence import divergences
from finetwo.insight.sides import Side, open_endpoint
from finetwo.model.network import Network
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

HOSTILE = "\x1b[31mred\x1b[0m <script>alert(1)</script> | `x` ‮back"
PROMPTS = ["The lamp", "Who's there?", "nine"]


def model(tokenizer: Tokenizer, name: str, seed: int = 0, **shape: object) -> Model:
    network = random_network(tiny_config(vocab_size=tokenizer.vocab_size, **({"n_positions": 64} | shape)), seed)
    return Model(network, tokenizer, name=name)


def quiet(_: str) -> None:
    return


def test_answers_and_divergences(tiny_tokenizer: Tokenizer) -> None:
    a, b = model(tiny_tokenizer, "a"), model(tiny_tokenizer, "b", 1)
    twin = model(tiny_tokenizer, "twin")
    twin.add_lora(rank=2)  # untrained
    sides = [Side(m.name, model=m) for m in (a, b, twin)]
    asking = Asking(sampling=SamplingConfig(max_new_tokens=7, temperature=0.8, seed=4))
    found = compare_answers(sides, PROMPTS, asking, quiet)
    for side in sides:
        assert side.model is not None
        wanted = [x.texts[0] for x in side.model.answers(PROMPTS, asking.sampling)]
        assert [one["answers"][side.name] for one in found["answers"]] == wanted
    assert [(k["first"], k["second"]) for k in found["kl"]] == [
        ("a", "b"), ("b", "a"), ("a", "twin"), ("twin", "a"), ("b", "twin"), ("twin", "b"),
    ]  # fmt: skip
    by_pair = {(k["first"], k["second"]): k for k in found["kl"]}
    assert by_pair["a", "twin"]["kl"] == by_pair["twin", "a"]["kl"] == 0.0
    assert by_pair["a", "twin"]["interval"] == (0.0, 0.0)
    sums = divergences(a.network, b.network, sides[0].written, 400)
    nats, tokens = sum(s[0] for s in sums), sum(s[1] for s in sums)
    assert (by_pair["a", "b"]["kl"], by_pair["a", "b"]["tokens"]) == (pytest.approx(nats / tokens), tokens)
    low, high = by_pair["a", "b"]["interval"]
    assert low <= nats / tokens <= high
    json.dumps(found, allow_nan=False)


def test_other_tokens_have_no_divergence_and_it_is_said(tiny_tokenizer: Tokenizer) -> None:
    other = Tokenizer(train_vocabulary(iter([TEXT] * 4), 380))
    sides = [Side("a", model=model(tiny_tokenizer, "a")), Side("b", model=model(other, "b"))]
    found = compare_answers(sides, PROMPTS, Asking(sampling=SamplingConfig(max_new_tokens=4)), quiet)
    assert [(k["kl"], k["same_tokens"]) for k in found["kl"]] == [(None, False)] * 2
    assert "other tokens" in answers_page(found).text()


def test_an_endpoint_beside_a_model(tiny_tokenizer: Tokenizer) -> None:
    spoken: list[str] = []
    with chatting(reply=lambda text: f"heard {text!r}") as chat:
        sides = [
            Side("a", model=model(tiny_tokenizer, "a")),
            Side("chat", endpoint=open_endpoint(f"{chat.url}#m", 5.0)),
        ]
        asking = Asking("Shot. ", prefix_for_all=False, sampling=SamplingConfig(max_new_tokens=3))
        found = compare_answers(sides, PROMPTS, asking, spoken.append)
    assert sorted(chat.prompts) == sorted(f"Shot. {p}" for p in PROMPTS)
    assert sides[0].written[0].prompt == tiny_tokenizer.encode(PROMPTS[0])
    assert found["answers"][0] == {
        "prompt": "The lamp",
        "answers": {"a": sides[0].answers[0], "chat": "heard 'Shot. The lamp'"},
    }
    assert found["kl"] == []
    assert spoken == [f"chat: 3 prompts go to {chat.url}/chat/completions"]
    text = answers_page(found).text()
    assert "How far apart" not in text
    assert "[put before every prompt to an endpoint]" in text


def test_the_prefix_may_be_for_all(tiny_tokenizer: Tokenizer) -> None:
    sides = [Side(n, model=model(tiny_tokenizer, n, i)) for i, n in enumerate("ab")]
    compare_answers(sides, ["nine"], Asking("The lamp. ", sampling=SamplingConfig(max_new_tokens=2)), quiet)
    assert {tuple(s.written[0].prompt) for s in sides} == {tuple(tiny_tokenizer.encode("The lamp. nine"))}


def test_hostile_text_is_shown_and_does_nothing(tiny_tokenizer: Tokenizer) -> None:
    with chatting(reply=lambda _: HOSTILE) as chat:
        sides = [Side(HOSTILE + n, endpoint=open_endpoint(f"{chat.url}#m", 5.0)) for n in "ab"]
        found = compare_answers(sides, [HOSTILE], Asking(HOSTILE), quiet)
    page = answers_page(found)
    text, marked, web = page.text(), page.markdown(), page.html()
    for form in (text, marked, web):
        assert "\x1b" not in form
        assert "‮" not in form
        assert "u202e" in form
    assert text.count(r"\x1b[31mred") == 8
    for form in (marked, web):
        assert "<script" not in form
        assert form.count("&lt;script&gt;") >= 6
    assert r"\`x\`" in marked
    assert all(line.count("|") - line.count(r"\|") in (0, 2, 3) for line in marked.splitlines())


def test_an_empty_answer_is_said(tiny_tokenizer: Tokenizer) -> None:
    with chatting("null", "null") as chat:
        sides = [Side(n, endpoint=open_endpoint(f"{chat.url}#m", 5.0)) for n in "ab"]
        found = compare_answers(sides, ["one"], Asking(), quiet)
    assert found["answers"][0]["answers"] == {"a": "", "b": ""}
    assert answers_page(found).text().count("(nothing)") == 2


# --- classifiers ----------------------------------------------------------------------------------------------------


def classifier(tokenizer: Tokenizer, name: str, seed: int, labels: tuple[str, ...] = ("no", "yes")) -> Model:
    network = Network.fresh(tiny_config(vocab_size=400, n_positions=32), seed)
    network.add_classes(labels, "last", seed)
    return Model(network.eval(), tokenizer, task="classify", name=name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    lines = [f"the {w} {i},{'yes' if i % 3 else 'no'}\n" for i, w in enumerate("lamp wind door steps word".split() * 8)]
    path.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    return path


def test_classifiers_on_the_same_records(tiny_tokenizer: Tokenizer, data: Path) -> None:
    models = [classifier(tiny_tokenizer, n, i) for i, n in enumerate("abc")]
    found = compare_classes(models, data, RowsConfig(), quiet)
    texts, truth = zip(*(line.split(",") for line in data.read_text().splitlines()[1:]), strict=True)
    said = {m.name: [p.label for p in m.predict(list(texts))] for m in models}
    right = {name: [s == t for s, t in zip(one, truth, strict=True)] for name, one in said.items()}
    assert found["records"] == 40
    assert {n: a["right"] for n, a in found["accuracy"].items()} == {n: sum(r) for n, r in right.items()}
    for one in found["mcnemar"]:
        a, b = right[one["first"]], right[one["second"]]
        only = (
            sum(x and not y for x, y in zip(a, b, strict=True)),
            sum(y and not x for x, y in zip(a, b, strict=True)),
        )
        assert (one["only_first_right"], one["only_second_right"]) == only
        wanted = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
        assert one["p_value"] == pytest.approx(wanted)
    apart = [t for i, t in enumerate(texts) if len({said[n][i] for n in said}) > 1]
    assert apart, "the models of this test must differ"
    assert [one["text"] for one in found["disagreements"]] == apart
    text = classes_page(found).text()
    assert f"{len(apart):,} records on which they disagree" in text
    assert text.count("data.csv:") == min(20, len(apart))


def test_the_order_of_the_classes_is_not_what_they_are(tiny_tokenizer: Tokenizer, data: Path) -> None:
    models = [classifier(tiny_tokenizer, "a", 0), classifier(tiny_tokenizer, "b", 0, ("yes", "no"))]
    found = compare_classes(models, data, RowsConfig(), quiet)
    assert found["accuracy"]["a"]["right"] + found["accuracy"]["b"]["right"] == 40  # the same weights, turned round


def test_what_does_not_compare(tiny_tokenizer: Tokenizer, data: Path) -> None:
    a = classifier(tiny_tokenizer, "a", 0)
    with pytest.raises(InputError, match="its classes are not those of a"):
        compare_classes([a, classifier(tiny_tokenizer, "b", 1, ("no", "maybe"))], data, RowsConfig(), quiet)
    with pytest.raises(InputError, match="is a language model"):
        compare_classes([a, model(tiny_tokenizer, "b")], data, RowsConfig(), quiet)
    pairs = classifier(tiny_tokenizer, "b", 1)
    pairs.task = "entail"
    with pytest.raises(InputError, match="single texts and pairs do not compare"):
        compare_classes([a, pairs], data, RowsConfig(), quiet)
    data.write_text("text,label\na,other\n", encoding="utf-8")
    with pytest.raises(InputError, match="other"):
        compare_classes([a, classifier(tiny_tokenizer, "b", 1)], data, RowsConfig(), quiet)
