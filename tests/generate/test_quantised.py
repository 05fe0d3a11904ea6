"""The engine over codes: an answer is the same alone and in company, and near what the whole weights answer."""

from __future__ import annotations

import pytest
import torch
from tests.generate.conftest import random_network, shape

import finetwo
from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.decoder import Decoder, FusedDecoder
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model
from finetwo.model.fused import Fused, make_ready, refused, usable
from finetwo.model.network import Network
from finetwo.model.quantised import KINDS, Kind, quantise
from finetwo.store.change import Change, probe_tokens
from finetwo.text.tokenizer import Tokenizer

WARM = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=3)
BOUNDS = {"int8": (1.0, 0.95, 0.01), "int4": (8.0, 0.75, 0.15)}
"""On the embedded model and the neutral text: largest change of a logit, agreement of the likeliest, perplexity's."""
needs_kernel = pytest.mark.skipif(refused() is not None, reason=f"no kernel: {refused()}")


def ready(kind: Kind, **settings: object) -> Network:
    network = random_network(shape(**settings))
    make_ready(network, kind)
    return network


def requests(count: int, sampling: SamplingConfig) -> list[Request]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 10, (count,), generator=generator).tolist()
    return [Request(torch.randint(0, 299, (n,), generator=generator).tolist(), sampling) for n in lengths]


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [SamplingConfig(max_new_tokens=12), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("count", [3, 11])
def test_company_changes_nothing(kind: Kind, sampling: SamplingConfig, count: int, tokenizer: Tokenizer) -> None:
    network = ready(kind)
    asked = requests(count, sampling)
    alone = [Engine(network, tokenizer).complete([r])[0] for r in asked]
    assert Engine(network, tokenizer).complete(asked) == alone
    assert Engine(network, tokenizer, max_slots=2).complete(asked) == alone
    assert Engine(network, tokenizer).complete(asked[::-1])[::-1] == alone
    assert len({tuple(c[0].tokens) for c in alone}) > count // 2


@needs_kernel
def test_samples_share_the_prompt(tokenizer: Tokenizer) -> None:
    network = ready("int8")
    many = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=5, n=5)
    asked = requests(3, many)
    done = Engine(network, tokenizer, max_slots=4).complete(asked)
    assert [Engine(network, tokenizer).complete([r])[0] for r in asked] == done
    assert len({tuple(c.tokens) for c in done[0]}) > 2


@needs_kernel
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_prompts_that_begin_alike_share_their_beginning(
    slots: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, begin = ready("int8"), [7, 3, 9, 2, 8, 4, 1, 6, 5, 11, 12]
    ends = ([20], [21, 22], [20, 23, 24], begin[:1], [21, 22])
    asked = [Request([*begin, *end], SamplingConfig(max_new_tokens=5)) for end in ends]
    asked += [Request(begin, SamplingConfig(max_new_tokens=5)), Request([30, 31], SamplingConfig(max_new_tokens=5))]
    alone = [Engine(network, tokenizer).complete([r])[0] for r in asked]
    given: list[int] = []
    whole = Fused.prompt

    def watched(self: Fused, slot: int, tokens: list[int], known: int = 0) -> torch.Tensor:
        given.append(known)
        return whole(self, slot, tokens, known)

    monkeypatch.setattr(Fused, "prompt", watched)
    assert Engine(network, tokenizer, max_slots=slots).complete(asked) == alone
    assert given[0] == 0 and given[-1] == 0 and min(given[1:-1]) >= len(begin) - 1


@needs_kernel
def test_greedy_takes_the_likeliest_of_the_full_forward(tokenizer: Tokenizer) -> None:
    network = ready("int8")
    agreed = total = 0
    for request in requests(6, SamplingConfig(max_new_tokens=12)):
        (done,) = Engine(network, tokenizer).complete([request])[0]
        with torch.no_grad():
            best = network(torch.tensor([[*request.tokens, *done.tokens[:-1]]]))[0].argmax(-1).tolist()
        agreed += sum(a == b for a, b in zip(best[-len(done.tokens) :], done.tokens, strict=True))
        total += len(done.tokens)
    assert agreed >= 0.97 * total


@pytest.mark.parametrize("kind", KINDS)
def test_torch_answers_where_there_is_no_kernel(kind: Kind, tokenizer: Tokenizer) -> None:
    network = random_network(shape())
    quantise(network, kind)
    assert not usable(network)
    asked = requests(3, SamplingConfig(max_new_tokens=6))
    engine = Engine(network, tokenizer)
    assert isinstance(engine._decoder(engine._answers(0, asked[0])), Decoder)
    slow = engine.complete(asked)
    assert all(len(d[0].tokens) for d in slow)
    if refused() is None:
        make_ready(network, None)
        assert isinstance(engine._decoder(engine._answers(0, asked[0])), FusedDecoder)
        fast = engine.complete(asked)
        same = sum(
            a == b for s, f in zip(slow, fast, strict=True) for a, b in zip(s[0].tokens, f[0].tokens, strict=False)
        )
        assert same >= 14  # of 18


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_on_the_embedded_model(kind: Kind) -> None:
    model, whole = finetwo.load("tiny", quantize=kind, device="cpu"), finetwo.load("tiny", device="cpu")
    assert model.n_parameters == whole.n_parameters
    probe = probe_tokens(whole.tokenizer, 512)
    with torch.no_grad():
        change = Change.between(probe, whole.network(probe), model.network(probe), classes=False)
    largest, agreement, share = BOUNDS[kind]
    assert 0 < change.largest < largest
    assert change.agreement > agreement
    assert change.perplexity is not None
    before, after = change.perplexity
    assert abs(after - before) / before < share
    pieces = "".join(model.stream("Once upon", SamplingConfig(max_new_tokens=8)))
    assert pieces == model.generate("Once upon", max_new_tokens=8)


def test_only_our_kinds() -> None:
    with pytest.raises(InputError, match=r"quantize: must be int8 or int4.*int3"):
        finetwo.load("tiny", quantize="int3")


def test_what_is_quantised_is_not_trained(tokenizer: Tokenizer) -> None:
    network = random_network(shape())
    quantise(network, "int8")
    model = Model(network, tokenizer)
    with pytest.raises(InputError, match="quantised"):
        finetwo.train([{"text": "one two three " * 20}], model=model, task="style", max_steps=1)
