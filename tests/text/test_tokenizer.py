"""The tokenizer against its references, and exact to the byte."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT

from finetwo.core.errors import InputError
from finetwo.text import tokenizer as module
from finetwo.text.engines import GAP, merges_reach_every_token, reference_encoder
from finetwo.text.tokenizer import StreamDecoder, Tokenizer, train_vocabulary
from finetwo.text.vocabulary import END_OF_TEXT, Vocabulary, byte_symbols, tokenizer_json

# Long runs, blanks of every kind, contractions and scripts: where the two engines could cut differently.
PIECES = ["  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x1c", "'s", "'ll", "'T", "1", "٣", "x²"]
PIECES += ["é", "e\u0301", "猫", "🙂", "👩‍👩‍👧", "the", " lamp", "_", "...", "<|endoftext|>", "\x00", "\ufeff"]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.text(alphabet=TEXT, max_size=60),
)
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_fast(tokenizer: Tokenizer) -> bool:
    return tokenizer._encode_text is not tokenizer._encode_reference


@given(text=TEXTS)
@QUICK
def test_our_vocabulary_agrees_with_the_reference(tiny_tokenizer: Tokenizer, text: str) -> None:
    assert is_fast(tiny_tokenizer)
    ids = tiny_tokenizer.encode(text)
    assert ids == tiny_tokenizer._encode_reference(text)
    assert tiny_tokenizer.decode(ids) == text
    assert tiny_tokenizer.decode_bytes(ids) == text.encode()


@given(text=TEXTS)
@QUICK
def test_published_vocabulary_agrees_with_the_reference(gpt2_tokenizer: Tokenizer, text: str) -> None:
    assert is_fast(gpt2_tokenizer)
    ids = gpt2_tokenizer.encode(text)
    assert ids == gpt2_tokenizer._encode_reference(text)
    assert gpt2_tokenizer.decode(ids) == text


def test_published_vocabulary_on_known_ids(gpt2_tokenizer: Tokenizer) -> None:
    assert gpt2_tokenizer.vocab_size == 50257 and gpt2_tokenizer.eot == 50256
    assert gpt2_tokenizer.encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert gpt2_tokenizer.encode("hello world") == [31373, 995]


@pytest.mark.slow
def test_every_code_point_agrees_with_the_reference(gpt2_tokenizer: Tokenizer) -> None:
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for at in range(0, len(points), 20_000):
        text = "".join(f"a{c}1 {c}{c}! " for c in points[at : at + 20_000])
        assert gpt2_tokenizer.encode(text) == gpt2_tokenizer._encode_reference(text), hex(ord(points[at]))


@pytest.mark.parametrize("end", ["", "x", "1", "\n"])
@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\u00a0"])
def test_very_long_runs_of_blanks(tiny_tokenizer: Tokenizer, blank: str, end: str) -> None:
    text = blank * 200_000 + end
    start = time.perf_counter()
    ids = tiny_tokenizer.encode(text)
    assert time.perf_counter() - start < 30
    assert tiny_tokenizer.decode(ids) == text
    short = blank * 500 + end
    assert tiny_tokenizer.encode(short) == tiny_tokenizer._encode_reference(short)


def test_a_panic_of_the_fast_engine_falls_back_to_the_reference(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """What a Rust panic looks like from Python."""

    class Core:
        def encode_ordinary(self, text: str) -> list[int]:
            raise {"panic": Panic, "stack": ValueError, "key": KeyboardInterrupt}[text]

    class Encoding:
        def __init__(self, *_: object, **__: object) -> None:
            self._core_bpe = Core()

        def encode_to_numpy(self, text: str, **_: object) -> object:
            raise KeyboardInterrupt if text.startswith("key") else Panic

    monkeypatch.setattr("tiktoken.Encoding", Encoding)
    tokenizer = Tokenizer(tiny_tokenizer.vocabulary)
    assert tokenizer.encode("panic") == tiny_tokenizer.encode("panic")
    assert tokenizer.encode("stack") == tiny_tokenizer.encode("stack")
    assert tokenizer.encode_flat(["panic", "stack"]) == tiny_tokenizer.encode_flat(["panic", "stack"])
    for ask in (tokenizer.encode, lambda text: tokenizer.encode_flat([text])):
        with pytest.raises(KeyboardInterrupt):
            ask("key")


def test_control_tokens_in_text_are_text(tiny_tokenizer: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b {END_OF_TEXT}"
    ids = tiny_tokenizer.encode(text)
    assert tiny_tokenizer.eot not in ids and tiny_tokenizer.decode(ids) == text
    assert tiny_tokenizer.eot not in tiny_tokenizer._encode_reference(text)
    assert tiny_tokenizer.bytes_of(tiny_tokenizer.eot) == END_OF_TEXT.encode()


@pytest.mark.parametrize("text", ["ab\ud83dcd", "\udc80", "a" * 5000 + "\ud800"])
@pytest.mark.parametrize("path", ["fast", "reference"])
def test_half_a_surrogate_pair_is_refused(tiny_tokenizer: Tokenizer, text: str, path: str) -> None:
    tokenizer = Tokenizer(tiny_tokenizer.vocabulary)
    if path == "reference":
        tokenizer.__dict__["_encode_text"] = tokenizer._encode_reference
    with pytest.raises(InputError, match="half of a surrogate pair at character") as e:
        tokenizer.encode(text)
    place = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    assert f"character {place} " in str(e.value) and "\n" not in str(e.value)


# --- many at once -------------------------------------------------------------------------------------------------


@given(
    texts=st.lists(st.one_of(TEXTS, st.sampled_from(["<|text-ends-here|>", "<|text-ends", "-here|>", ""])), max_size=9)
)
@QUICK
def test_many_are_one_by_one(tiny_tokenizer: Tokenizer, texts: list[str]) -> None:
    """No text sees its neighbours, not even one that spells what stands between them."""
    wanted = [tiny_tokenizer.encode(t) for t in texts]
    assert tiny_tokenizer.encode_flat(texts).tolist() == [i for ids in wanted for i in (*ids, GAP)]
    ahead = tiny_tokenizer.ahead(iter(texts))
    assert [ahead.encode(t) for t in texts] == wanted and ahead.encode("another") == tiny_tokenizer.encode("another")
    assert ahead.encode_flat(texts) == tiny_tokenizer.encode_flat(texts) and ahead.eot == tiny_tokenizer.eot


def test_many_groups_come_back_in_order(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 40)
    texts = [TEXT[i : i + i % 90] for i in range(200)]
    seen: list[str] = []
    real = Tokenizer.encode_flat

    def spy(self: Tokenizer, group: list[str]) -> Any:
        seen.append(threading.current_thread().name)
        return real(self, group)

    monkeypatch.setattr(Tokenizer, "encode_flat", spy)
    ahead = tiny_tokenizer.ahead(texts)
    assert len(seen) > 20 and all(name.startswith("finetwo-tokens") for name in seen)
    assert [ahead.encode(t) for t in texts] == [tiny_tokenizer.encode(t) for t in texts]


def test_a_list_from_ahead_is_the_callers_own(tiny_tokenizer: Tokenizer) -> None:
    ahead = tiny_tokenizer.ahead(["The lamp"])
    del ahead.encode("The lamp")[0]
    assert ahead.encode("The lamp") == tiny_tokenizer.encode("The lamp")


def test_many_through_the_reference(tiny_tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer(hand_made("a b", "b c", "a bc"))
    assert not is_fast(tokenizer)
    ahead, texts = tokenizer.ahead(["abc", "", "ab"]), ("abc", "", "ab")
    assert [ahead.encode(t) for t in texts] == [tokenizer.encode(t) for t in texts]


def test_many_name_the_text_with_half_a_pair(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="half of a surrogate pair at character 2 "):
        tiny_tokenizer.ahead(["fine", "ab\ud83d"])


# --- streaming ----------------------------------------------------------------------------------------------------


@given(data=st.data())
@QUICK
def test_streamed_text_is_the_text_of_all(tiny_tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tiny_tokenizer.vocab_size - 1), max_size=30))
    stream = StreamDecoder(tiny_tokenizer)
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.flush() == tiny_tokenizer.decode(ids)


@given(text=st.text(alphabet="aé猫🙂 ", max_size=20))
@QUICK
def test_a_stream_never_splits_a_character(tiny_tokenizer: Tokenizer, text: str) -> None:
    stream, at = StreamDecoder(tiny_tokenizer), 0
    for byte in text.encode():  # one byte a token: every split that can be
        part = stream.push(tiny_tokenizer.vocabulary.ids[byte_symbols()[byte]])
        assert "\ufffd" not in part and text.startswith(part, at)
        at += len(part)
    assert at == len(text) and stream.flush() == ""


def test_a_stream_tells_an_unfinished_character_at_its_end(tiny_tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tiny_tokenizer)
    ids = [tiny_tokenizer.vocabulary.ids[byte_symbols()[b]] for b in "🙂".encode()[:3]]
    assert [stream.push(i) for i in ids] == ["", "", ""] and stream.flush() == "\ufffd" == tiny_tokenizer.decode(ids)


# --- against transformers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(text=TEXTS.filter(lambda t: END_OF_TEXT not in t))
@QUICK
def test_the_saved_folder_means_the_same_to_transformers(tiny_tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    ids = tiny_tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_transformers_finds_the_end_of_text(tiny_tokenizer: Tokenizer, theirs: Any) -> None:
    assert theirs.eos_token_id == theirs.bos_token_id == tiny_tokenizer.eot
    assert len(theirs) == tiny_tokenizer.vocab_size


def test_transformers_gpt2_tokenizer_fast(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import GPT2TokenizerFast

    tiny_tokenizer.save(tmp_path)
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in (TEXT, " a", "  \n\n b", "don't DON'T", "é" * 9):
        assert theirs(text)["input_ids"] == tiny_tokenizer.encode(text)


# --- training -----------------------------------------------------------------------------------------------------


def test_training_lays_ids_out_as_gpt2() -> None:
    vocabulary = train_vocabulary(iter([TEXT]), 300)
    assert vocabulary.size == 300 and vocabulary.eot == 299 and vocabulary.added == {END_OF_TEXT: 299}
    assert [vocabulary.ids[s] for s in byte_symbols().values()] == list(range(256))
    made = [vocabulary.ids[a + b] for a, b in vocabulary.merges]
    assert made == list(range(256, 299))


def test_training_is_repeatable() -> None:
    first, second = (Tokenizer(train_vocabulary(iter([TEXT]), 300)) for _ in range(2))
    assert first.digest == second.digest
    assert first.digest != Tokenizer(train_vocabulary(iter([TEXT]), 301)).digest


@pytest.mark.parametrize("size", [0, 256, -1, 10**7])
def test_training_refuses_impossible_sizes(size: int) -> None:
    with pytest.raises(InputError, match="--vocab: must be from 257"):
        train_vocabulary(iter([TEXT]), size)


def test_training_says_when_the_text_is_too_small() -> None:
    with pytest.raises(InputError, match="too small for 5000 ids: it gave") as e:
        train_vocabulary(iter(["aaaa bbbb"]), 5000)
    told = int(str(e.value).split("it gave ")[1].split(".")[0])
    assert train_vocabulary(iter(["aaaa bbbb"]), told).size == told


# --- other vocabularies -------------------------------------------------------------------------------------------


def hand_made(*merges: str, order: list[int] | None = None, pre: dict[str, Any] | None = None) -> Vocabulary:
    """Return a vocabulary of the bytes and these merges; `order` permutes the merges' ids."""
    ids = {s: i for i, s in enumerate(byte_symbols().values())}
    pairs = [(a, b) for a, b in (m.split(" ") for m in merges)]
    made = list(dict.fromkeys(a + b for a, b in pairs))
    for token, place in zip(made, order or range(len(made)), strict=True):
        ids[token] = 256 + place
    return Vocabulary(ids, pairs, {END_OF_TEXT: len(ids)}, len(ids), pre)


@pytest.mark.parametrize(
    ("vocabulary", "fast"),
    [
        (hand_made("a b", "ab c", "b c"), True),
        (hand_made("a b", "ab c", order=[1, 0]), False),  # ids do not grow with priority
        (hand_made("a b", "b c", "a bc"), False),  # "abc" alone becomes ab, c: tiktoken would say abc
        (hand_made("a b", "b c", "ab c", "a bc"), False),  # one token made twice
    ],
    ids=["plain", "ids out of order", "unreachable token", "made twice"],
)
@given(text=st.text(alphabet="abc ", max_size=12))
@QUICK
def test_the_fast_engine_is_used_only_where_it_agrees(vocabulary: Vocabulary, fast: bool, text: str) -> None:
    from tokenizers import Tokenizer as Library

    tokenizer = Tokenizer(vocabulary)
    assert is_fast(tokenizer) is fast
    library = Library.from_str(json.dumps(tokenizer_json(vocabulary)))
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_a_merge_of_symbols_that_stand_for_no_byte() -> None:
    vocabulary = hand_made("a b", "猫 a")
    vocabulary.ids["猫"] = 258
    vocabulary.added[END_OF_TEXT] = vocabulary.eot = 259
    tokenizer = Tokenizer(vocabulary)
    assert not is_fast(tokenizer)
    assert tokenizer.decode(tokenizer.encode("猫ab")) == "猫ab" and tokenizer.encode("ab") == [256]
    assert tokenizer.bytes_of(258) == "猫".encode()


PREFIX = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
NO_REGEX = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize("pre", [PREFIX, DIGITS, NO_REGEX], ids=["prefix blank", "digits apart", "no cut"])
def test_other_byte_level_cuts_go_through_the_reference(
    tiny_tokenizer: Tokenizer, pre: dict[str, Any], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer as Library
    from transformers import AutoTokenizer

    spec = tokenizer_json(tiny_tokenizer.vocabulary) | {"pre_tokenizer": pre}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(tmp_path)
    library = Library.from_str(json.dumps(spec))
    assert not is_fast(tokenizer) and tokenizer.digest != tiny_tokenizer.digest
    differs = False
    for text in ("The lamp 365", "harbour the 12345", TEXT, "", "a  b"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        differs |= ids != tiny_tokenizer.encode(text)
    assert differs  # else the test shows nothing
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(TEXT) == tokenizer.encode(TEXT)
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(TEXT)["input_ids"] == tokenizer.encode(TEXT)


def test_a_pre_tokenizer_the_library_refuses_is_an_input_error(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = tokenizer_json(tiny_tokenizer.vocabulary) | {"pre_tokenizer": {"type": "ByteLevels"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="the tokenizers library refuses it"):
        Tokenizer.load(tmp_path).encode("a")


def test_reference_encoder_adds_no_control_tokens(tiny_tokenizer: Tokenizer) -> None:
    encode = reference_encoder(tiny_tokenizer.vocabulary)
    assert tiny_tokenizer.eot not in encode(END_OF_TEXT) and encode("") == []


def test_the_embedded_vocabulary_is_what_its_digest_promises() -> None:
    embedded = Tokenizer.load(Path(module.__file__).parents[1] / "assets" / "tiny")
    assert embedded.digest == module._EMBEDDED
    assert merges_reach_every_token(embedded.vocabulary)


def test_the_published_vocabulary_is_what_its_digest_promises(gpt2_tokenizer: Tokenizer) -> None:
    """The proof that is not made at each start for the published vocabulary is made here."""
    assert gpt2_tokenizer.digest == module._PUBLISHED
    assert merges_reach_every_token(gpt2_tokenizer.vocabulary)
