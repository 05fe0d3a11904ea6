"""The classifier's head against transformers, against plain means, and against itself in other company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.standins.models import difference, random_network, tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetwo.data.batch import Batch, layout, pack, pad
from finetwo.data.sequences import IGNORE, Sequence, encode_document
from finetwo.model.attend import Attend, Causal, Packed
from finetwo.model.config import Pooling
from finetwo.model.head import mean_hidden
from finetwo.model.network import Network
from finetwo.tasks.registry import find_task
from finetwo.text.tokenizer import Tokenizer

LABELS = ("joy", "fear", "anger")
LENGTHS = (1, 7, 3, 19, 2, 11)
WEIGHTS = (0.5, 3.0, 1.25)


def classifier(pooling: Pooling = "last") -> Network:
    network = random_network(tiny_config())
    network.add_classes(LABELS, pooling, seed=1)
    with torch.no_grad():
        assert network.score is not None
        network.score.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    return network


def documents(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Sequence]:
    """Documents of these lengths, each with a class; none ends in the end-of-text id (60)."""
    generator, found = torch.Generator().manual_seed(seed), []
    for i, length in enumerate(lengths):
        tokens = torch.randint(0, 60, (length,), generator=generator).numpy().astype("int32")
        targets = torch.full((length,), IGNORE).numpy().astype("int32")
        targets[-1] = (i * 2 + 1) % 3
        found.append(Sequence(tokens, targets))
    return found


def inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Attend]:
    tokens, positions, targets = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.targets))
    return tokens, positions, targets, Packed(positions) if batch.packed else Causal()


def hf_classifier(network: Network) -> Any:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    shape = {k: v for k, v in network.config.to_dict().items() if k not in ("architectures", "torch_dtype")}
    twin = GPT2ForSequenceClassification(GPT2Config(**shape, attn_implementation="eager"))
    twin.load_state_dict(dict(network.state()), strict=True)
    return twin.eval()


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lay", [pad, pack], ids=["padded", "packed"])
def test_logits_equal_transformers_one_by_one_and_in_a_padded_batch(lay: Any) -> None:
    network = classifier()
    theirs, docs = hf_classifier(network), documents()
    ours = network.class_logits(*inputs(lay(docs)))
    single = torch.cat([theirs(torch.from_numpy(d.tokens[None]).long()).logits for d in docs])
    rows = torch.full((len(docs), max(LENGTHS)), theirs.config.pad_token_id)
    mask = torch.zeros_like(rows)
    for i, d in enumerate(docs):
        rows[i, : len(d)], mask[i, : len(d)] = torch.from_numpy(d.tokens).long(), 1
    assert ours.shape == (6, 3) and difference(single[0], single[1]) > 1e-2
    assert difference(ours, single) < 1e-5
    assert difference(ours, theirs(rows).logits) < 1e-5
    assert difference(ours, theirs(rows, attention_mask=mask).logits) < 1e-5


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_company_and_layout_change_nothing(pooling: Pooling) -> None:
    """Batch 1 and batch 64, packed and padded: the same classes, and probabilities within 1e-6."""
    network = classifier(pooling)
    docs = documents(tuple(1 + (i * 7) % 19 for i in range(64)))
    alone = torch.cat([network.class_logits(*inputs(pad([d]))) for d in docs])
    for batch in (pad(docs), pack(docs), layout(docs, None), pack(docs[::-1])):
        found = network.class_logits(*inputs(batch))
        if batch.tokens[0, 0] != pad(docs).tokens[0, 0]:
            found = found.flip(0)
        assert (found.argmax(1) == alone.argmax(1)).all()
        assert difference(found.softmax(1), alone.softmax(1)) < 1e-6


def test_what_stands_in_the_padding_is_never_read() -> None:
    for pooling in ("last", "mean"):
        network, batch = classifier(pooling), pad(documents())
        tokens, positions, targets, attend = inputs(batch)
        wanted = network.class_logits(tokens, positions, targets, attend)
        for row, length in enumerate(LENGTHS):
            tokens[row, length:] = 42
        assert difference(network.class_logits(tokens, positions, targets, attend), wanted) == 0


# --- pooling ----------------------------------------------------------------------------------------------------------


def test_mean_pooling_equals_a_plain_mean_of_each_document() -> None:
    network, docs = classifier("mean"), documents()
    assert network.score is not None
    means = [network.hidden(torch.from_numpy(d.tokens[None]).long())[0].mean(0) for d in docs]
    wanted = torch.stack(means) @ network.score.weight.t()
    assert difference(wanted, classifier("last").class_logits(*inputs(pad(docs)))) > 1e-2
    for batch in (pad(docs), pack(docs)):
        assert difference(network.class_logits(*inputs(batch)), wanted) < 1e-5


@pytest.mark.parametrize("lay", [pad, pack], ids=["padded", "packed"])
def test_mean_pooling_passes_gradients_to_the_document_alone(lay: Any) -> None:
    batch = lay(documents((3, 2, 4)))
    _, positions, targets, _ = inputs(batch)
    hidden = torch.randn(*positions.shape, 5, requires_grad=True)
    keep = torch.nonzero(targets.reshape(-1) != IGNORE).squeeze(1)
    mean_hidden(hidden, positions, keep)[1].sum().backward()
    assert hidden.grad is not None
    felt = hidden.grad.reshape(-1, 5).abs().sum(1) > 0
    first = int(keep[1]) - 1
    assert felt.nonzero().squeeze(1).tolist() == [first, first + 1]
    assert hidden.grad.reshape(-1, 5)[first].tolist() == [0.5] * 5


# --- loss and gradients -----------------------------------------------------------------------------------------------


def reference(network: Network, docs: list[Sequence], weights: tuple[float, ...] | None) -> tuple[float, Any]:
    """PyTorch's own weighted mean over the whole batch of logits taken one by one, and its gradients."""
    network.zero_grad()
    assert network.score is not None
    rows = []
    for d in docs:
        hidden = network.hidden(torch.from_numpy(d.tokens[None]).long())[0]
        rows.append((hidden.mean(0) if network.config.pooling == "mean" else hidden[-1]) @ network.score.weight.t())
    truth = torch.tensor([int(d.targets[-1]) for d in docs])
    weight = None if weights is None else torch.tensor(weights)
    loss = cross_entropy(torch.stack(rows), truth, weight=weight, reduction="mean")
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("pieces", [(6,), (1, 5), (2, 3, 1)], ids=str)
def test_loss_and_gradients_equal_pytorchs(
    pooling: Pooling, weights: tuple[float, ...] | None, packing: bool, pieces: tuple[int, ...]
) -> None:
    """sum(w * CE) / sum(w) over all micro-batches, whose classes are unequal."""
    network, docs = classifier(pooling), documents()
    wanted, gradients = reference(network, docs, weights)
    network.zero_grad()
    batches, start = [], 0
    for size in pieces:
        batches.append(layout(docs[start : start + size], packing))
        start += size
    mass = sum(b.learned if weights is None else b.weight(weights) for b in batches)
    table, total = None if weights is None else torch.tensor(weights), 0.0
    for batch in batches:
        loss = network.loss(*inputs(batch), table)
        (loss / mass).backward()
        total += float(loss.detach())
    assert total / mass == pytest.approx(wanted, rel=1e-5)
    assert gradients.keys() == {n for n, p in network.named_parameters()}
    for name, p in network.named_parameters():
        assert p.grad is not None
        scale = max(1.0, float(gradients[name].abs().max()))
        assert difference(p.grad, gradients[name]) / scale < 1e-5, name


def test_weights_of_the_classes_matter() -> None:
    network, batch = classifier(), pad(documents())
    plain = float(network.loss(*inputs(batch)).detach()) / batch.learned
    weighted = float(network.loss(*inputs(batch), torch.tensor(WEIGHTS)).detach()) / batch.weight(WEIGHTS)
    assert abs(plain - weighted) > 1e-2


def test_head_dropout_only_while_training() -> None:
    network, batch = classifier(), inputs(pad(documents()))
    still = float(network.loss(*batch).detach())
    network.head_dropout = 0.5
    assert float(network.loss(*batch).detach()) == still
    logits = network.class_logits(*batch)
    network.train()
    torch.manual_seed(0)
    drawn = {round(float(network.loss(*batch).detach()), 6) for _ in range(4)}
    assert len(drawn) == 4 and round(still, 6) not in drawn
    assert difference(network.eval().class_logits(*batch), logits) == 0


def test_a_fresh_head_is_drawn_by_its_seed() -> None:
    one, same, other = (random_network(tiny_config()) for _ in range(3))
    for network, seed in ((one, 3), (same, 3), (other, 4)):
        network.add_classes(LABELS, "last", seed)
    assert one.score is not None and same.score is not None and other.score is not None
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert one.config.parameters == sum(p.numel() for p in one.parameters())
    assert set(one.state()) == set(random_network(tiny_config()).state()) | {"score.weight"}


# --- documents --------------------------------------------------------------------------------------------------------


def encoded(tokenizer: Tokenizer, task: str, fields: dict[str, str], room: int = 64) -> tuple[list[int], str]:
    sequence, fate = encode_document(tokenizer, find_task(task).write(fields, None), room, 2)
    assert sequence.targets[-1] == 2 and (sequence.targets[:-1] == IGNORE).all()
    return sequence.tokens.tolist(), fate


def test_a_document_ends_in_its_own_last_token(tiny_tokenizer: Tokenizer) -> None:
    """Neither padding nor the end-of-text id is ever what the head reads, even where the text spells it."""
    eot = tiny_tokenizer.eot
    for text in ("the lamp", "a", " it ended<|endoftext|>", "🙂"):
        tokens, fate = encoded(tiny_tokenizer, "classify", {"text": text})
        assert tokens == tiny_tokenizer.encode(text) and eot not in tokens and fate == "kept"
        pair, _ = encoded(tiny_tokenizer, "entail", {"first": "who?", "second": text})
        assert pair == [*tiny_tokenizer.encode("who?"), eot, *tiny_tokenizer.encode(text)]
        assert pair.count(eot) == 1 and pair[-1] != eot


def test_the_separator_is_read_like_any_token(tiny_tokenizer: Tokenizer, tiny_network: Network) -> None:
    tiny_network.add_classes(("yes", "no"))
    pair = find_task("entail").write({"first": "who?", "second": "the lamp"}, None)
    sequence, _ = encode_document(tiny_tokenizer, pair, 19, 0)
    at = sequence.tokens.tolist().index(tiny_tokenizer.eot)
    other = Sequence(sequence.tokens.copy(), sequence.targets)
    other.tokens[at] = 5
    one, two = (tiny_network.class_logits(*inputs(pad([s]))) for s in (sequence, other))
    assert difference(one, two) > 1e-3


def test_a_long_document_loses_the_end_of_its_longest_part(tiny_tokenizer: Tokenizer) -> None:
    long, short = "the lamp in the harbour went out at nine, and nobody answered", "who?"
    n, few = tiny_tokenizer.encode(long), tiny_tokenizer.encode(short)
    for first, second in ((long, short), (short, long)):
        tokens, fate = encoded(tiny_tokenizer, "entail", {"first": first, "second": second}, 12)
        kept = n[: 12 - 1 - len(few)]
        assert fate == "truncated" and len(tokens) == 12
        assert tokens == ([*kept, tiny_tokenizer.eot, *few] if first == long else [*few, tiny_tokenizer.eot, *kept])
    both, _ = encoded(tiny_tokenizer, "entail", {"first": long, "second": long}, 11)
    assert both == [*n[:5], tiny_tokenizer.eot, *n[:5]]
    assert encoded(tiny_tokenizer, "classify", {"text": long}, 4) == (n[:4], "truncated")
    assert encoded(tiny_tokenizer, "classify", {"text": long}, len(n)) == (n, "kept")
