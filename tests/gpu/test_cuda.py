"""What only a CUDA GPU can show: the same numbers as on the CPU, kernels that are truly used, a step without waiting.

pytest -m gpu tests/gpu
"""

from __future__ import annotations

import copy
import itertools
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import calm_network, difference, unequal_batch
from tests.train.support import At, Recorder, gap, quick, records, step_losses, weights

from finetwo.core.config import SamplingConfig, TrainConfig
from finetwo.core.errors import NumericError, Stopped
from finetwo.data.batch import Batch
from finetwo.generate.engine import Engine, Request
from finetwo.generate.replay import Replay
from finetwo.model.attend import Varlen
from finetwo.model.network import Network
from finetwo.model.passes import kernels
from finetwo.text.tokenizer import Tokenizer
from finetwo.train import stepping
from finetwo.train.evaluate import place
from finetwo.train.optimizer import Optimizer
from finetwo.train.replayed import Replayed
from finetwo.train.step import backward, gradient_norm, unseen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]
GPU = torch.device("cuda")


def network_of(kind: str = "full") -> Network:
    return calm_network(lora=kind == "lora")


def batch_of(*, share: bool) -> Batch:
    return unequal_batch(True, share=share)


def gradients(network: Network, batch: Batch, precision: str, times: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients as a run takes them: on a GPU in 16 bits recorded at the second of some `times`."""
    steps = Replayed(network, precision, record=True) if Replayed.usable(network, precision) else None
    for _ in range(times):
        for p in network.parameters():
            if p.grad is not None:
                p.grad.zero_()
        given = ([batch], precision, batch.learned)
        loss = float(backward(network, *given) if steps is None else steps([batch], batch.learned, None, 1.0))
    if steps is not None:
        assert not steps._refused and len(steps._made) == (times > 1)
    return loss, {n: p.grad.float().cpu() for n, p in network.named_parameters() if p.grad is not None}


def test_the_kernels_work_here() -> None:
    assert kernels(GPU) is not None


@pytest.mark.parametrize("share", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16 recorded"])
def test_loss_and_gradients_are_those_of_the_cpu(kind: str, precision: str, share: bool) -> None:
    network = network_of(kind)
    wanted = gradients(network, batch_of(share=share), "float32")
    low, _, recorded = precision.partition(" ")
    found = gradients(copy.deepcopy(network).to(GPU), batch_of(share=share), low, 3 if recorded else 1)
    near = 1e-4 if precision == "float32" else 0.03
    assert found[0] == pytest.approx(wanted[0], rel=near)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        off = (found[1][name] - gradient).norm() / gradient.norm()
        assert off < (1e-4 if precision == "float32" else 0.06), name


def test_bf16_takes_sequences_as_they_are_and_float32_lays_them_in_a_block() -> None:
    network = network_of().to(GPU)
    assert isinstance(place(batch_of(share=True), network, "bf16").attend, Varlen)
    assert not isinstance(place(batch_of(share=True), network, "float32").attend, Varlen)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_waits_for_nothing(kind: str, recorded: bool) -> None:
    network = network_of(kind).to(GPU)
    optimizer, bad = Optimizer(network, TrainConfig(), 1e-3, keeps=True), torch.zeros((), device=GPU)
    parameters = [p for p in network.parameters() if p.requires_grad]
    steps = Replayed(network, "bf16", record=recorded)

    def step() -> None:
        batch = batch_of(share=True)
        loss = steps([batch], batch.learned, None, 1.0)
        optimizer.step(1.0, unseen(loss, gradient_norm(parameters), 1.0, bad))

    step()  # the first compiles kernels and makes the optimizer's state
    step()  # the second records
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this does not see everything
            torch.cuda.set_sync_debug_mode("error")
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(bad) == 0.0


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_run_goes_as_on_the_cpu(base: Path, tmp_path: Path, precision: str) -> None:
    settings = {"max_steps": 8, "lr": 1e-3}
    quick(records(15), base, tmp_path / "cpu", device="cpu", **settings)
    seen = Recorder()
    quick(records(15), base, tmp_path / "gpu", device="cuda", precision=precision, listeners=[seen], **settings)
    assert [e["step"] for e in seen.of("step")] == list(range(1, 9))
    near = 1e-4 if precision == "float32" else 0.03
    assert step_losses(tmp_path / "gpu") == pytest.approx(step_losses(tmp_path / "cpu"), rel=near)


def test_stopped_and_resumed_is_as_if_never_stopped(base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr": 1e-3, "device": "cuda", "precision": "bf16", "deterministic": True}
    quick(records(15), base, tmp_path / "whole", max_steps=6, **settings)
    stop = At("step", 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped):
        quick(records(15), base, tmp_path / "parts", max_steps=6, listeners=[stop], **settings)
    quick(records(15), base, tmp_path / "parts", max_steps=6, **settings)
    assert step_losses(tmp_path / "whole") == step_losses(tmp_path / "parts")
    assert gap(weights(tmp_path / "whole/final"), weights(tmp_path / "parts/final")) == 0.0


def test_numbers_that_are_none_are_found_a_step_later_and_change_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []

    def broken(network: Network, batches: Any, *more: Any) -> torch.Tensor:
        steps.append({n: p.detach().clone() for n, p in network.named_parameters()})
        loss = backward(network, batches, *more)
        return loss * float("nan") if len(steps) == 3 else loss

    monkeypatch.setattr(stepping, "backward", broken)
    seen = Recorder()
    with pytest.raises(NumericError, match="step 3: loss nan"):
        quick(records(15), base, tmp_path / "run", max_steps=9, device="cuda", lr=1e-3, listeners=[seen])
    assert [e["step"] for e in seen.of("step")] == [1, 2]
    assert len(steps) == 4, "the fourth step was begun before the third was known to be bad"
    assert gap(steps[2], steps[3]) == 0.0 and gap(steps[1], steps[2]) > 0


@pytest.mark.parametrize(
    "settings", [{}, {"lora": {"rank": 4}}, {"dropout": 0.1}, {"grad_accum": 2}, {"packing": False}]
)
def test_a_recorded_run_is_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Bit for bit but for sums whose order a GPU does not keep, with dropout too: it draws the same numbers."""
    given: dict[str, Any] = {"max_steps": 10, "lr": 1e-3, "device": "cuda", "precision": "bf16", **settings}
    rows = records(8)  # two steps an epoch: shapes come again
    made: list[int] = []
    real = Replayed._try_to_record

    def counted(self: Replayed, *more: Any) -> None:
        real(self, *more)
        made.append(len(self._made))

    monkeypatch.setattr(Replayed, "_try_to_record", counted)
    quick(rows, base, tmp_path / "recorded", **given)
    assert made and made[-1] > 0
    monkeypatch.setattr(Replayed, "_try_to_record", lambda self, *more: None)
    quick(rows, base, tmp_path / "plain", **given)
    assert step_losses(tmp_path / "recorded") == pytest.approx(step_losses(tmp_path / "plain"), rel=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_stored_base_learns_as_on_the_cpu(base: Path, tmp_path: Path, kind: str, precision: str) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "lr": 1e-3, "quantize": kind, "lora": {"rank": 4}}
    quick(records(8), base, tmp_path / "cpu", device="cpu", **settings)
    quick(records(8), base, tmp_path / "gpu", device="cuda", precision=precision, **settings)
    near = 0.01 if precision == "float32" else 0.03
    assert step_losses(tmp_path / "gpu") == pytest.approx(step_losses(tmp_path / "cpu"), rel=near)


def answers(network: Network, tokenizer: Tokenizer, **settings: Any) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(1)
    sizes = (5, 1, 30, 12, 7, 9, 2, 3, 4, 11)
    prompts = [torch.randint(0, 399, (n,), generator=generator).tolist() for n in sizes]
    sampling = SamplingConfig(max_new_tokens=20, **settings)
    done = Engine(network, tokenizer).complete([Request(p, sampling) for p in prompts])
    return [[c.tokens for c in row] for row in done]


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.3}, {"temperature": 0.8, "n": 2}]
)
def test_answers_are_those_of_the_cpu(tiny_tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    network = network_of().eval()
    wanted = answers(network, tiny_tokenizer, **settings)
    assert answers(copy.deepcopy(network).to(GPU), tiny_tokenizer, **settings) == wanted


def test_a_step_that_is_played_again_is_the_step(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of().eval().to(GPU)
    played = answers(network, tiny_tokenizer, temperature=0.0)
    plays: list[int] = []

    def plain(self: Replay, tokens: Any, places: Any, rows: int, span: int) -> torch.Tensor:
        plays.append(rows)
        given = torch.tensor([list(tokens), list(places)], device=GPU)[:, :rows]
        return self._step(given[0], given[1], rows, span)

    monkeypatch.setattr(Replay, "__call__", plain)
    assert answers(network, tiny_tokenizer, temperature=0.0) == played and plays


def test_bf16_decoding_is_near(tiny_tokenizer: Tokenizer) -> None:
    """Greedy answers differ where two tokens are nearly even; the loss of what was chosen tells how far off."""
    network = network_of().eval()
    low = copy.deepcopy(network).to(GPU, torch.bfloat16)
    prompt = list(range(20))
    chosen = Engine(low, tiny_tokenizer).complete([Request(prompt, SamplingConfig(max_new_tokens=20, temperature=0.0))])
    text = torch.tensor([prompt + chosen[0][0].tokens])
    with torch.no_grad():
        logits = network(text)[0, len(prompt) - 1 : -1]
    short = logits.amax(1) - logits.gather(1, text[0, len(prompt) :, None]).squeeze(1)
    assert float(short.max()) < 0.05 * float(logits.abs().max())


def test_packed_logits_are_those_of_each_alone() -> None:
    network = network_of().eval().to(GPU)
    batch = batch_of(share=False)
    with torch.no_grad(), network.lowered():
        on = place(batch, network, "bf16")
        together = network(on.tokens, on.positions, on.attend)[0].float()
        starts = [i for i, p in enumerate(batch.positions[0]) if p == 0] + [batch.tokens.shape[1]]
        for a, b in itertools.pairwise(starts):
            assert difference(network(on.tokens[:, a:b])[0].float().cpu(), together[a:b].cpu()) < 0.05
