"""The engine against the plain forward, against transformers, and against itself in other company."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.generate.conftest import random_network, shape
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate import decoder as decoder_module
from finetwo.generate import engine as engine_module
from finetwo.generate.decoder import Decoder, FusedDecoder
from finetwo.generate.engine import Completion, Engine, Request
from finetwo.model.fused import refused, usable
from finetwo.model.network import Network
from finetwo.model.storing import store_blocks
from finetwo.text.tokenizer import Tokenizer

GREEDY = SamplingConfig(max_new_tokens=12)
WARM = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=3)
KINDS = {
    "plain": {},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "odd_heads": {"n_embd": 21, "n_head": 3, "n_inner": 50},
    "short": {"n_positions": 16},
    "relu": {"activation_function": "relu"},
}
Way = type[Decoder] | type[FusedDecoder]


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Both ways to decode: by the compiled kernel, and by torch where there is none."""
    if request.param == "torch":
        monkeypatch.setattr(engine_module, "usable", lambda network: False)
        return Decoder
    if refused() is not None:
        pytest.skip(f"no kernel: {refused()}")
    return FusedDecoder


def prompts(count: int, longest: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, 299, (n,), generator=generator).tolist() for n in lengths]


def adapted(seed: int = 0, rank: int = 1, **settings: object) -> Network:
    network = random_network(shape(**settings), seed)
    network.add_lora(rank=rank, targets="all-linear", dropout=0.5)
    with torch.no_grad():
        for n, p in network.named_parameters():
            if "lora_B" in n:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return network


def ids(done: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[c.tokens for c in row] for row in done]


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
def test_cached_logits_equal_the_full_forward(kind: str, way: Way) -> None:
    network = adapted() if kind == "lora" else random_network(shape(**KINDS[kind]))
    network.eval()
    sequences = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [20, 21, 22]]
    decoder = way(network, 300, 8, 16)
    given = [3, 1]
    got = [[decoder.start(s, s, seq[:n])[0]] for s, (seq, n) in enumerate(zip(sequences, given, strict=True))]
    for step in range(7):
        live = {s: seq[given[s] + step] for s, seq in enumerate(sequences) if given[s] + step < len(seq)}
        for s, row in zip(live, decoder.step(live), strict=True):
            got[s].append(row)
    for sequence, n, rows in zip(sequences, given, got, strict=True):
        with torch.no_grad():
            full = network(torch.tensor([sequence]))[0, n - 1 :]
        torch.testing.assert_close(torch.stack(rows), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_equals_transformers(kind: str, penalty: float, way: Way, tokenizer: Tokenizer) -> None:
    network = random_network(shape(**KINDS[kind]), seed=1)
    their_config = TheirConfig(**{k: v for k, v in network.config.to_dict().items() if k != "architectures"})
    theirs = GPT2LMHeadModel(their_config).eval()
    missing, unexpected = theirs.load_state_dict(network.state(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == {
        n: tuple(p.shape) for n, p in network.state().items()
    }
    room = network.config.n_positions
    requests = [Request(p, SamplingConfig(max_new_tokens=30, repetition_penalty=penalty)) for p in prompts(3)]
    for request, (ours,) in zip(requests, Engine(network, tokenizer).complete(requests), strict=True):
        out = theirs.generate(
            torch.tensor([request.tokens]),
            attention_mask=torch.ones(1, len(request.tokens), dtype=torch.long),
            max_new_tokens=min(30, room - len(request.tokens)),
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=tokenizer.eot,
            pad_token_id=tokenizer.eot,
        )
        assert ours.tokens == out[0, len(request.tokens) :].tolist()


@pytest.mark.parametrize("kind", ["plain", "odd_heads", "lora"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 17])
def test_company_changes_nothing(
    kind: str, sampling: SamplingConfig, count: int, way: Way, tokenizer: Tokenizer
) -> None:
    network = adapted(rank=3) if kind == "lora" else random_network(shape(**KINDS[kind]))
    requests = [Request(p, sampling) for p in prompts(count)]
    engine = Engine(network, tokenizer)
    assert type(engine._decoder(engine._answers(0, requests[0]))) is way
    alone = [Engine(network, tokenizer).complete([r])[0] for r in requests]
    assert Engine(network, tokenizer).complete(requests) == alone
    assert Engine(network, tokenizer, max_slots=8).complete(requests) == alone
    backwards = Engine(network, tokenizer).complete(requests[::-1])
    assert backwards[::-1] == alone
    assert len({tuple(c[0].tokens) for c in alone}) > count // 2


@pytest.mark.parametrize(("together", "threads"), [(True, 1), (True, 2), (False, 1)])
def test_logits_are_equal_bit_for_bit(together: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(threads)
    if not together:  # a machine whose matrix library treats 16 rows unlike 8
        monkeypatch.setattr(decoder_module, "rows_agree", lambda network, rows: False)
    for kind in ("plain", "odd_heads")[: 3 - threads]:
        network = random_network(shape(n_positions=200, **KINDS[kind]))
        texts = prompts(19, longest=150)
        many = Decoder(network, 300, 24, 200)
        first = [many.start(slot, slot, p) for slot, p in enumerate(texts)]
        steps = [many.step(dict.fromkeys(range(len(texts)), 7)) for _ in range(4)]
        for slot in (0, 3, 11, 18):
            one = Decoder(network, 300, 8, 170)
            assert torch.equal(one.start(2, 0, texts[slot]), first[slot])
            for step in steps:
                assert torch.equal(one.step({2: 7})[0], step[slot])


@pytest.mark.skipif(refused() is not None, reason=f"no kernel: {refused()}")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "odd_heads", "lora"])
def test_logits_of_the_kernel_are_equal_bit_for_bit(kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    longer = {"n_positions": 200}
    network = adapted(rank=3, **longer) if kind == "lora" else random_network(shape(**longer, **KINDS[kind]))
    texts = prompts(19, longest=150)
    many = FusedDecoder(network, 300, 19, 200)
    first = [many.start(slot, slot, p) for slot, p in enumerate(texts)]
    steps = [many.step(dict.fromkeys(range(19), 7)) for _ in range(4)]
    torch.set_num_threads(1)
    for slot in (0, 3, 11, 18):
        one = FusedDecoder(network, 300, 1, 170)
        assert torch.equal(one.start(0, 0, texts[slot]), first[slot])
        for count, step in zip((2, 5, 8, 13), steps, strict=True):
            assert torch.equal(one.step({0: 7})[0], step[slot])
            few = FusedDecoder(network, 300, count, 170)  # other company, and its place in a call another
            for place in range(count):
                few.start(place, place, texts[(slot + place + 1) % 19])
            few.start(count - 1, 99, texts[slot])
            assert torch.equal(few.step(dict.fromkeys(range(count), 7))[-1], steps[0][slot])


def test_which_networks_the_kernel_takes() -> None:
    there = refused() is None
    network = random_network(shape())
    assert usable(network) == usable(adapted()) == there
    with network.lowered():
        assert not usable(network)
    assert usable(network) == there
    assert not usable(random_network(shape()).to(torch.bfloat16))
    stored = adapted()
    store_blocks(stored, "nf4")
    assert not usable(stored)


@pytest.mark.skipif(refused() is not None, reason=f"no kernel: {refused()}")
def test_the_kernel_reads_weights_that_learned(tokenizer: Tokenizer) -> None:
    network, request = adapted(), Request([1, 2, 3], GREEDY)
    engine = Engine(network, tokenizer)
    before = engine.complete([request])
    with torch.no_grad():
        for n, p in network.named_parameters():
            if "lora_B" in n:
                p.mul_(-3)
    (done,) = engine.complete([request])[0]
    assert [[done]] != before
    with torch.no_grad():
        best = network.eval()(torch.tensor([[1, 2, 3, *done.tokens]]))[0].argmax(-1).tolist()
    assert done.tokens == best[2:-1]


def test_rows_agree_on_this_machine() -> None:
    assert decoder_module.rows_agree(random_network(shape()), 32)  # else the engine is right but slow


@pytest.mark.parametrize("max_slots", [8, 32])
def test_samples_share_the_prompt_and_equal_it_alone(
    network: Network, tokenizer: Tokenizer, max_slots: int, way: Way
) -> None:
    three = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=5, n=3)
    many = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=5, n=11)
    one = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=5)
    texts = prompts(5)
    prefills = []
    start = way.start

    def counted(self: Decoder | FusedDecoder, slot: int, owner: int, prompt: Sequence[int]) -> torch.Tensor:
        prefills.append(owner not in self._owners)
        return start(self, slot, owner, prompt)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "start", counted)
        engine = Engine(network, tokenizer, max_slots=max_slots)
        done = engine.complete([Request(p, s) for p, s in zip(texts, [three, many, one, three, many], strict=True)])
    assert sum(prefills) == len(texts)
    assert [len(d) for d in done] == [3, 11, 1, 3, 11]
    for text, row in zip(texts, done, strict=True):
        assert Engine(network, tokenizer).complete([Request(text, one)])[0][0] == row[0]
        alone = Engine(network, tokenizer).complete([Request(text, many)])[0]
        assert alone[: len(row)] == row
        assert len({tuple(c.tokens) for c in alone}) > 5


def test_settings_of_a_row_are_its_own(network: Network, way: Way, tokenizer: Tokenizer) -> None:
    settings = [
        SamplingConfig(max_new_tokens=10),
        SamplingConfig(max_new_tokens=3, temperature=0.7, top_k=5),
        SamplingConfig(max_new_tokens=10, temperature=2.0, top_p=0.8, repetition_penalty=1.5),
        SamplingConfig(max_new_tokens=7, temperature=1.0, min_p=0.1, seed=9),
        SamplingConfig(max_new_tokens=10, repetition_penalty=2.0),
    ]
    requests = [Request(p, s) for p, s in zip(prompts(5), settings, strict=True)]
    assert Engine(network, tokenizer).complete(requests) == [
        Engine(network, tokenizer).complete([r])[0] for r in requests
    ]


def test_seed_gives_the_text(network: Network, tokenizer: Tokenizer) -> None:
    def tokens(seed: int) -> list[int]:
        sampling = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=seed)
        return Engine(network, tokenizer).complete([Request([1, 2, 3], sampling)])[0][0].tokens

    assert tokens(1) == tokens(1)
    assert len({tuple(tokens(s)) for s in range(6)}) > 3


def test_repetition_penalty_forbids_what_was_said(network: Network, tokenizer: Tokenizer) -> None:
    sampling = SamplingConfig(max_new_tokens=20, repetition_penalty=100.0)
    tokens = Engine(network, tokenizer).complete([Request([4, 5, 6], sampling)])[0][0].tokens
    assert len({4, 5, 6, *tokens}) == 3 + len(tokens)


@pytest.mark.parametrize("length", [1, 14, 15, 16, 17, 160])
def test_the_window_is_the_context_length(length: int, way: Way, tokenizer: Tokenizer) -> None:
    network = random_network(shape(n_positions=16))
    prompt = torch.randint(0, 299, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    request = Request(prompt, SamplingConfig(max_new_tokens=100, repetition_penalty=5.0))
    (done,) = Engine(network, tokenizer).complete([request])[0]
    assert done.truncated_prompt == (length > 15)
    kept = prompt if length < 16 else prompt[-8:]  # half a context stays when more is asked for than fits
    if done.finish_reason == "length":
        assert len(kept) + len(done.tokens) == 16
    # Every token comes from all of what stands before it, nothing has fallen out.
    network.eval()
    whole = kept + done.tokens
    plain = Engine(network, tokenizer).complete([Request(prompt, SamplingConfig(max_new_tokens=100))])[0][0]
    whole = kept + plain.tokens
    with torch.no_grad():
        best = network(torch.tensor([whole[:-1]]))[0].argmax(-1).tolist()
    assert plain.tokens == best[len(kept) - 1 :]


def test_smallest_context_and_empty_prompt(network: Network, tokenizer: Tokenizer) -> None:
    tiny = random_network(shape(n_positions=1))
    (done,) = Engine(tiny, tokenizer).complete([Request([3, 4])])[0]
    assert len(done.tokens) == 1 and done.truncated_prompt
    empty, eot = Engine(network, tokenizer).complete([Request([]), Request([tokenizer.eot])])
    assert empty == eot and not empty[0].truncated_prompt


def test_end_of_text_ends_and_is_not_text(tokenizer: Tokenizer) -> None:
    network = random_network(shape())
    with torch.no_grad():  # the head is tied: pull the last hidden state towards end-of-text
        network.transformer.ln_f.weight.zero_()
        network.transformer.ln_f.bias.copy_(network.head_weight[tokenizer.eot] * 10)
    (done,) = Engine(network, tokenizer).complete([Request([3])])[0]
    assert (done.tokens, done.text, done.finish_reason) == ([tokenizer.eot], "", "stop")


class Script:
    """A stand-in for the sampler: says given ids, whatever the network thinks."""

    def __init__(self, said: dict[int, list[int]]) -> None:
        self.said, self.at, self.steps = said, dict[int, int](), dict[int, int]()

    def __call__(self, slots: int, vocab: int, device: torch.device) -> Script:
        return self

    def admit(self, slot: int, settings: SamplingConfig, prompt: Sequence[int], sample: int) -> None:
        self.at[slot], self.steps[slot] = prompt[0], 0

    def choose(self, logits: torch.Tensor, slots: Sequence[int]) -> list[int]:
        for s in slots:
            self.steps[s] += 1
        return [self.said[self.at[s]][self.steps[s] - 1] for s in slots]


def test_stops_end_characters_and_lengths(
    network: Network, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["one two. END six", "the cat EN", "a猫🙂", "the mat"]
    said = {i: [*tokenizer.encode(t), tokenizer.eot] for i, t in enumerate(texts)}
    said[3] = said[3][:-1] + [_byte(tokenizer, b) for b in "🙂".encode()[:2]] + [tokenizer.eot]
    monkeypatch.setattr(engine_module, "Sampler", Script(said))
    requests = [Request([i], SamplingConfig(max_new_tokens=40, stop=["END", ". EX"])) for i in said]
    requests.append(Request([1], SamplingConfig(max_new_tokens=len(said[1]) - 1, stop=["END"])))
    events = list(Engine(network, tokenizer).stream(requests))
    joined = ["".join(e.text for e in events if e.request == i) for i in range(5)]
    assert joined == ["one two. ", "the cat EN", "a猫🙂", "the mat�", "the cat EN"]
    reasons = [[e.finish_reason for e in events if e.request == i] for i in range(5)]
    assert [r[-1] for r in reasons] == ["stop", "stop", "stop", "stop", "length"]
    assert all(r is None for row in reasons for r in row[:-1])
    assert [c.text for (c,) in Engine(network, tokenizer).complete(requests)] == joined


def _byte(tokenizer: Tokenizer, value: int) -> int:
    return next(i for i in range(256) if tokenizer.bytes_of(i) == bytes([value]))


def test_stop_strings_cut_what_would_have_been_said(network: Network, tokenizer: Tokenizer) -> None:
    free = Engine(network, tokenizer).complete([Request(p, SamplingConfig(max_new_tokens=20)) for p in prompts(6)])
    for prompt, (whole,) in zip(prompts(6), free, strict=True):
        for stop in {whole.text[i : i + 3] for i in range(0, max(0, len(whole.text) - 3), 4)}:
            sampling = SamplingConfig(max_new_tokens=20, stop=[stop])
            (done,) = Engine(network, tokenizer).complete([Request(prompt, sampling)])[0]
            assert done.text == whole.text[: whole.text.find(stop)] and done.finish_reason == "stop"


def test_a_wider_head_never_says_an_id_without_text(tokenizer: Tokenizer) -> None:
    network = random_network(shape(vocab_size=320))
    with torch.no_grad():
        network.head_weight[300:] *= 50
    sampling = SamplingConfig(max_new_tokens=20, temperature=3.0, n=8)
    tokens = [t for c in Engine(network, tokenizer).complete([Request([1], sampling)])[0] for t in c.tokens]
    assert max(tokens) < 300


def test_the_mode_of_the_network_comes_back(tokenizer: Tokenizer) -> None:
    network = adapted()
    network.transformer.dropout = 0.5
    network.train()
    stream = Engine(network, tokenizer).stream([Request([1, 2])])
    next(stream)
    assert not network.training and not torch.is_inference_mode_enabled()
    stream.close()  # type: ignore[attr-defined]
    assert network.training
    assert network(torch.tensor([[1]])).requires_grad
    network.eval()
    assert ids(Engine(network, tokenizer).complete([Request([1, 2])])) == ids(
        Engine(network.train(), tokenizer).complete([Request([1, 2])])
    )


def test_bfloat16_runs(tokenizer: Tokenizer) -> None:
    network = random_network(shape()).to(torch.bfloat16)
    done = Engine(network, tokenizer).complete([Request(p, GREEDY) for p in prompts(9)])
    assert all(row[0].tokens for row in done)


def test_bad_requests_are_refused(network: Network, tokenizer: Tokenizer) -> None:
    engine = Engine(network, tokenizer)
    with pytest.raises(InputError, match="token id outside"):
        engine.stream([Request([300])])
    with pytest.raises(InputError, match="max_new_tokens"):
        engine.stream([Request([1], SamplingConfig(max_new_tokens=0))])
    assert list(engine.stream([])) == []
