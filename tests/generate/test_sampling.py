"""Sampling against Hugging Face's processors: the same kept set, the same probabilities."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import NumericError
from finetwo.generate.sampling import Sampler, draw, penalise, stream_key, uniform, warp

VOCAB = 50


@st.composite
def rows(draw_: st.DrawFn) -> tuple[torch.Tensor, list[SamplingConfig], list[list[int]]]:
    count = draw_(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 10**6)))
    logits = torch.randn(count, VOCAB, generator=generator) * draw_(st.sampled_from([0.1, 1.0, 10.0, 60.0]))
    if draw_(st.booleans()):
        logits = logits.round()  # ties
    configs = [
        SamplingConfig(
            temperature=draw_(st.sampled_from([0.1, 0.7, 1.0, 3.0])),
            top_k=draw_(st.sampled_from([0, 1, 3, VOCAB, 10**20])),
            top_p=draw_(st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])),
            min_p=draw_(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
            repetition_penalty=draw_(st.sampled_from([0.5, 1.0, 1.3])),
        )
        for _ in range(count)
    ]
    seen = [draw_(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)) for _ in range(count)]
    return logits, configs, seen


def reference(logits: torch.Tensor, config: SamplingConfig, seen: list[int]) -> torch.Tensor:
    steps = LogitsProcessorList()
    if config.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(MinPLogitsWarper(config.min_p))
    return steps(torch.tensor([seen]), logits[None])[0]


@settings(max_examples=300, deadline=None)
@given(rows())
def test_warpers_equal_hugging_face(case: tuple[torch.Tensor, list[SamplingConfig], list[list[int]]]) -> None:
    logits, configs, seen = case
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for i, ids in enumerate(seen):
        mask[i, ids] = True
    penalties = torch.tensor([c.repetition_penalty for c in configs])
    ours = warp(penalise(logits, mask, penalties), configs)
    for i, config in enumerate(configs):
        theirs = reference(logits[i], config, seen[i])
        assert torch.equal(ours[i].isinf(), theirs.isinf())
        torch.testing.assert_close(ours[i].softmax(-1), theirs.softmax(-1), rtol=1e-6, atol=1e-7)
        alone = warp(penalise(logits[i : i + 1], mask[i : i + 1], penalties[i : i + 1]), [config])
        assert torch.equal(alone[0], ours[i])


def test_top_p_keeps_the_crossing_token() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = warp(logits, [SamplingConfig(temperature=1.0, top_p=0.6)])
    assert kept.isfinite().tolist() == [[True, True, False, False]]


def test_draw_is_the_inverse_of_the_distribution() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, 0.0]]).repeat(6, 1)
    at = torch.tensor([0.0, 0.33, 0.34, 0.66, 0.67, 1 - 2.0**-48], dtype=torch.float64)
    assert draw(logits, at).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    key = stream_key(0, 0, [1, 2])
    at = torch.tensor([uniform(key, i) for i in range(20000)], dtype=torch.float64)
    counts = draw(probabilities.log().repeat(20000, 1), at).bincount(minlength=3)
    torch.testing.assert_close(counts / 20000, probabilities, atol=0.015, rtol=0)


def test_streams_differ_by_seed_sample_and_prompt() -> None:
    keys = [stream_key(0, 0, [5]), stream_key(1, 0, [5]), stream_key(0, 1, [5]), stream_key(0, 0, [6])]
    assert len({uniform(k, 0) for k in keys}) == 4
    assert all(0 <= uniform(k, s) < 1 for k in keys for s in range(100))
    assert stream_key(2**63 - 1, 0, [5])  # the largest seed there is


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_are_refused(bad: float) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = bad
    sampler = Sampler(8, VOCAB, torch.device("cpu"))
    with pytest.raises(NumericError, match="not finite"):
        sampler.choose(logits, [0])


def test_temperature_near_zero_is_greedy() -> None:
    sampler = Sampler(8, VOCAB, torch.device("cpu"))
    sampler.admit(0, SamplingConfig(temperature=1e-44), [1], 0)
    logits = torch.randn(1, VOCAB) * 100
    assert sampler.choose(logits, [0]) == [int(logits.argmax())]
