"""The names that columns bear in data sets: of prompts and answers, of texts, of pairs, of classes.

It knows names in small letters and nothing of records; which of them win is told in `columns`. Its one invariant: a
name that stands for a class unasked is one that hardly ever means anything else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """A known arrangement of prompts and answers."""

    name: str
    prompt: str
    input: str | None
    completion: str


LAYOUTS = (
    Layout("Alpaca", "instruction", "input", "output"),
    Layout("Dolly", "instruction", "context", "response"),
    Layout("prompt/completion", "prompt", None, "completion"),
    Layout("prompt/response", "prompt", None, "response"),
    Layout("instruction/completion", "instruction", "input", "completion"),
    Layout("question/answer", "question", "context", "answer"),
)
COMPLETIONS = ("output", "response", "completion", "answer")
PROMPTS = ("instruction", "prompt", "question")
TEXTS = (
    *("text", "sentence", "content", "review", "comment", "message"),
    *("tweet", "sms", "document", "body", "utterance"),
)
"""Texts, the likeliest first."""
MORE_TEXTS = (
    *("review_text", "reviewtext", "review_body", "comment_text", "tweet_text", "full_text", "headline", "title"),
    *("article", "news", "post", "phrase", "statement", "abstract", "description", "question", "query", "prompt"),
)
"""Texts to be classified where it is asked for and there is none of the former."""
SURE_LABELS = ("label", "labels", "label_name", "gold_label", "class", "is_duplicate")
"""Names that mean a class even where nobody asked to classify."""
USUAL_LABELS = ("category", "sentiment", "emotion", "intent", "topic")
"""Names that mean a class even then if a text is all there is beside them."""
LABELS = (
    *SURE_LABELS,
    *USUAL_LABELS,
    *("target", "polarity", "rating", "stars", "coarse_label", "relation", "is_spam"),
)
INDEX = ("", "id", "idx", "index", "uid", "guid", "pairid", "pair_id", "unnamed: 0")
"""Columns that only number the records."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("first", "second"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
    ("question", "answer"),
)
CONVERSATIONS = ("messages", "conversations")
