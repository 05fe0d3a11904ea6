"""Which column plays which part, and that only text is ever taken for text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from finetwo.core.config import ColumnsConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Columns, Kind, adopt_input, detect_columns
from finetwo.data.selecting import class_name, select
from finetwo.data.source import Row

ALPACA = Columns("instruction", "input", "output", layout="Alpaca")


def detect(*names: str, kind: Kind | None = None, labelled: bool = True, **wanted: str) -> Columns:
    return detect_columns(names, ColumnsConfig(**wanted), "a.json:1: record 1", kind, labelled=labelled)


@pytest.mark.parametrize(
    ("names", "roles", "layout"),
    [
        ("instruction input output", "instruction input output", "Alpaca"),
        ("output instruction text id", "instruction - output", "Alpaca"),
        ("instruction context response category", "instruction context response", "Dolly"),
        ("Instruction Response", "Instruction - Response", "Dolly"),
        ("prompt completion", "prompt - completion", "prompt/completion"),
        ("prompt response", "prompt - response", "prompt/response"),
        ("id question answer", "question - answer", "question/answer"),
    ],
)
def test_known_layouts(names: str, roles: str, layout: str) -> None:
    prompt, further, completion = (None if r == "-" else r for r in roles.split())
    got = detect(*names.split())
    assert got == Columns(prompt, further, completion, layout=layout)
    assert got.kind == "instruct"
    assert got.describe().startswith(f"columns: prompt = '{prompt}'")


def test_text_and_mapping() -> None:
    assert detect("title", "text") == Columns(text="text", layout="text")
    assert detect("title", "text").kind == "text"
    assert detect("body", text="body") == Columns(text="body")
    assert detect("q", "a", prompt="q", completion="a") == Columns("q", None, "a")
    assert detect("q", "a", "c", prompt="q", completion="a", input="c").input == "c"
    assert detect("instruction", "input", "output", "x", completion="x") == Columns("instruction", None, "x")
    assert detect("q", "answer", prompt="q").completion == "answer"
    assert "as given" in detect("body", text="body").describe()


def test_what_cannot_be_told() -> None:
    with pytest.raises(InputError, match=r"fields found: 'frage', 'antwort'.*--rows.columns.prompt NAME --rows.col"):
        detect("frage", "antwort")
    with pytest.raises(InputError, match=r"--rows.columns.prompt names a field .*got frag.*'frage', 'antwort'"):
        detect("frage", "antwort", prompt="frag")
    with pytest.raises(InputError, match=r"--rows.columns.completion is missing"):
        detect("frage", "antwort", prompt="frage")
    with pytest.raises(InputError, match="several columns could be"):
        detect("instruction", "output", "response")
    with pytest.raises(InputError, match=r"--rows.columns.prompt: plays no part in data for plain text \(got b\)"):
        detect("a", "b", text="a", prompt="b")


def test_select_takes_roles_and_further_text() -> None:
    row = Row({"instruction": "i", "input": None, "output": "o", "category": "c", "n": 3, "prompt": "x"}, "f", 1, 1)
    assert select(row, ALPACA) == {"prompt": "i", "input": "", "completion": "o", "category": "c"}
    assert select(Row({"instruction": "i", "output": "o"}, "f", 1, 1), ALPACA)["input"] == ""
    assert select(Row({"text": "t", "title": "x"}, "f", 1, 1), Columns(text="text")) == {"text": "t", "title": "x"}


def test_row_36_a_missing_field() -> None:
    with pytest.raises(InputError) as caught:
        select(Row({"instruction": "i", "answer": "o"}, "f.jsonl", 17, 17), ALPACA)
    line = str(caught.value)
    assert line.startswith("f.jsonl:17: record 17: the field 'output' (completion) is missing; fields found: 'instruc")
    assert "--rows.columns.completion NAME" in line


@pytest.mark.parametrize(
    ("value", "got"),
    [(None, "null"), (3, "a number: 3"), (True, "true or"), (["x"], "a list: ['x']"), ({"a": "b"}, "a nested object")],
)
def test_row_37_only_text_is_text(value: object, got: str) -> None:
    with pytest.raises(InputError) as caught:
        select(Row({"instruction": "i", "output": value}, "f", 2, 2), ALPACA)
    assert "f:2: record 2: the field 'output' (completion) must be text" in str(caught.value)
    assert f"got {got}" in str(caught.value)
    if value is not None:
        with pytest.raises(InputError, match=r"\(input\) must be text"):
            select(Row({"instruction": "i", "output": "o", "input": value}, "f", 2, 2), ALPACA)


def test_an_input_that_the_first_record_lacks_is_found() -> None:
    rows = [Row({"instruction": "i", "output": "o"}, "f", 1, 1), Row({"instruction": "i", "input": "x"}, "f", 2, 2)]
    assert adopt_input(detect("instruction", "output"), rows).input == "input"
    assert adopt_input(detect("instruction", "output"), rows[:1]).input is None


# --- classes and pairs ------------------------------------------------------------------------------------------------

SINGLE = """
text,label                                       text label           IMDB, emotion, AG News, tweet_eval
Text,Label                                       Text Label
label,text                                       text label           Yelp
idx,sentence,label                               sentence label       SST-2
sentence,label,idx                               sentence label       CoLA
text,label,label_text                            text label           SetFit
label,title,content                              content label        Amazon, DBpedia
review,sentiment                                 review sentiment     the IMDB table of Kaggle
Review,Sentiment                                 Review Sentiment
tweet,emotion                                    tweet emotion
sms,label                                        sms label            sms_spam
Category,Message                                 Message Category     the SMS table of Kaggle
label,message                                    message label
utterance,intent                                 utterance intent
category,text                                    text category        BBC News
text,intent                                      text intent          CLINC
Unnamed: 0,text,sentiment                        text sentiment       as pandas writes
id,comment,class                                 comment class
question,label                                   question label       TREC
headline,label                                   headline label
frage,label                                      frage label
text,user_id,subforum_id,num_contexts,label      text label           hate_speech18
,count,hate_speech,offensive,neither,class,tweet tweet class          hate speech
"""
PAIRS = """
premise,hypothesis,label                         premise hypothesis label           SNLI, MNLI
idx,premise,hypothesis,label                     premise hypothesis label           CB
uid,premise,hypothesis,label,reason              premise hypothesis label           ANLI
index,sentence1,sentence2,label                  sentence1 sentence2 label          RTE, WNLI, MRPC
id,sentence1,sentence2,label                     sentence1 sentence2 label          PAWS
annotator_labels,gold_label,sentence1,sentence2  sentence1 sentence2 gold_label     the JSON of SNLI
question,sentence,label,idx                      question sentence label            QNLI
question1,question2,label,idx                    question1 question2 label          QQP
id,qid1,qid2,question1,question2,is_duplicate    question1 question2 is_duplicate   the Quora table
pair_ID,sentence_A,sentence_B,label              sentence_A sentence_B label        SICK
Premise,Hypothesis,Label                         Premise Hypothesis Label
text_a,text_b,label                              text_a text_b label
query,passage,label                              query passage label
"""


def cases(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.strip()]
    return [[line[:49].rstrip(), *line[49:].split("  ")[0].split()] for line in lines]


@pytest.mark.parametrize(("names", "text", "label"), cases(SINGLE))
def test_a_text_with_its_class_is_told_by_the_names(names: str, text: str, label: str) -> None:
    for kind in (None, "classify"):
        got = detect(*names.split(","), kind=kind)
        assert (got.kind, got.text, got.label) == ("classify", text, label)
    assert f"text = '{text}', label = '{label}'" in got.describe()


@pytest.mark.parametrize(("names", "first", "second", "label"), cases(PAIRS))
def test_a_pair_with_its_class_is_told_by_the_names(names: str, first: str, second: str, label: str) -> None:
    for kind in (None, "entail"):
        got = detect(*names.split(","), kind=kind)
        assert (got.kind, got.first, got.second, got.label) == ("entail", first, second, label)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("instruction,context,response,category", "instruct"),  # Dolly
        ("instruction,input,output,label", "instruct"),
        ("prompt,completion,label", "instruct"),
        ("question,answer,label", "instruct"),
        ("messages,label", "instruct"),
        ("conversations,id,category", "instruct"),
        ("text", "text"),
        ("title,text", "text"),
        ("text,meta", "text"),
        ("text,source,category", "text"),
        ("text,target", "text"),
        ("id,keyword,location,text,target", "text"),
        ("author,title,text,topic", "text"),
    ],
)
def test_what_is_no_classification_unless_it_is_asked_for(names: str, kind: str) -> None:
    assert detect(*names.split(",")).kind == kind


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ("headline,category", "Fix: --task classify would take text = 'headline', label = 'category'; or say which is"),
        ("review,stars", "Fix: --task classify would take text = 'review', label = 'stars'; or say which is"),
        (
            "claim,evidence,target",
            "Fix: --task entail would take first = 'claim', second = 'evidence', label = 'target'; ",
        ),
        ("subject,body,queue", "Fix: say which is which: "),
        ("a,b,category", "Fix: say which is which: "),
    ],
)
def test_what_a_task_would_take_is_said_where_nobody_asked_for_one(names: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        detect(*names.split(","))
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("names", "text", "label"),
    [
        ("text,source,category", "text", "category"),
        ("id,keyword,location,text,target", "text", "target"),
        ("reviewText,stars", "reviewText", "stars"),
        ("kommentar,is_spam", "kommentar", "is_spam"),
        ("kommentar,klasse", None, None),
        ("comment,klasse", "comment", "klasse"),
        ("id,text,klasse", "text", "klasse"),
    ],
)
def test_a_class_where_it_is_asked_for(names: str, text: str | None, label: str | None) -> None:
    if text is None:
        with pytest.raises(InputError, match=r"no column for text, label .*'kommentar', 'klasse'.*columns.label NAME"):
            detect(*names.split(","), kind="classify")
        return
    got = detect(*names.split(","), kind="classify")
    assert (got.text, got.label) == (text, label)


def test_mapped_columns_win() -> None:
    for names in (("v1", "v2"), ("v1", "v2", "v3")):
        assert detect(*names, text="v2", label="v1") == Columns(text="v2", label="v1")
    assert detect("v1", "v2", label="v1") == Columns(text="v2", label="v1", layout="classes")
    assert detect("text", "label", "emotion", label="emotion").label == "emotion"
    assert detect("text", "title", "label", text="title", kind="classify").text == "title"
    assert detect("a", "b", "c", first="a", second="c", label="b") == Columns(first="a", second="c", label="b")
    assert detect("a", "b", "label", kind="entail").second == "b"
    assert detect("a", "b", "label", kind="entail", first="b") == Columns(
        first="b", second="a", label="label", layout="pair"
    )
    assert detect("text", "label", kind="text") == Columns(text="text", layout="text")


def test_what_a_class_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"no column for text among .*'response'.*--rows.columns.text NAME"):
        detect("instruction", "context", "response", "category", kind="classify")
    with pytest.raises(InputError, match="no column for label among the fields found: 'text', 'title', 'x'"):
        detect("text", "title", "x", kind="classify")
    with pytest.raises(InputError, match="no column for first, second among"):
        detect("text", "label", kind="entail")
    with pytest.raises(InputError, match="no column for label among"):
        detect("premise", "hypothesis", kind="entail")
    with pytest.raises(InputError, match=r"--rows.columns.first: plays no part in data for texts with a class"):
        detect("text", "label", kind="classify", first="text")
    with pytest.raises(InputError, match=r"columns.label names a field that the records lack \(got lable\)"):
        detect("text", "label", kind="classify", label="lable")


def test_texts_to_be_classified_need_no_class() -> None:
    assert detect("text", kind="classify", labelled=False).text == "text"
    assert detect("id", "kommentar", kind="classify", labelled=False).text == "kommentar"
    assert detect("a", "b", kind="entail", labelled=False).second == "b"
    with pytest.raises(InputError) as caught:
        detect("a", "b", "c", kind="classify", labelled=False)
    assert str(caught.value).endswith(
        "no column for text among the fields found: 'a', 'b', 'c'. Fix: say which is which: --rows.columns.text NAME"
    )


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((" spam ", "spam"), ("1", "1"), ("1.0", "1.0"), ("", ""), (None, ""), (float("nan"), ""), (np.nan, "")),
        *((0, "0"), (-1, "-1"), (1.0, "1"), (-0.0, "0"), (True, "True"), (False, "False"), (pd.NA, "")),
        *(
            (np.int64(3), "3"),
            (np.float32(2), "2"),
            (np.bool_(True), "True"),
            (np.str_("a"), "a"),
            (10**20, "1" + "0" * 20),
        ),
    ],
    ids=repr,
)
def test_the_name_of_a_class(value: object, name: str) -> None:
    assert class_name(value, "f:1: record 1") == name


@pytest.mark.parametrize("value", [0.5, float("inf"), ["a"], {"a": 1}, b"a", np.array([1]), pd.NaT], ids=repr)
def test_what_is_no_class(value: object) -> None:
    with pytest.raises(InputError, match=r"^f:1: record 1: the field 'label' \(label\) is no class \(got "):
        class_name(value, "f:1: record 1")


def test_select_takes_a_class_by_its_name() -> None:
    columns = Columns(text="t", label="y")
    row = Row({"t": " as it stands ", "y": 2, "more": "x"}, "f", 1, 1)
    assert select(row, columns) == {"text": " as it stands ", "label": "2", "more": "x"}
    assert select(Row({"t": "x"}, "f", 1, 1), columns)["label"] == ""
    with pytest.raises(InputError, match=r"the field 't' \(text\) must be text \(got a number: 5\)"):
        select(Row({"t": 5, "y": 2}, "f", 1, 1), columns)
    assert select(Row({"instruction": "i", "input": pd.NA, "output": "o"}, "f", 1, 1), ALPACA)["input"] == ""
