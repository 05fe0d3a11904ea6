"""Sides of the generation benchmark: FineTwo, transformers, CTranslate2 and llama.cpp decode from the same weights.

    python benchmarks/decoding_sides.py PART JSON

It must not know who is compared with whom. Its one invariant: every side reads the same random weights, gets the same
prompts and takes the likeliest of the same number of tokens; the rate counts the tokens after each answer's first.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from running import emit
from workloads import SHAPES


def prompts_of(job: dict[str, Any]) -> list[list[int]]:
    """Prompts of random ids, one for each answer; the first 256 ids are bytes."""
    drawn = random.Random(1)
    return [[drawn.randrange(256) for _ in range(job["prompt"])] for _ in range(job["batch"])]


def now() -> tuple[float, float]:
    """The time, and the processor time that this process has used: on a busy machine the second is the calmer."""
    return time.perf_counter(), time.process_time()


def since(begun: tuple[float, float]) -> tuple[float, float]:
    """Both times since then."""
    at = now()
    return at[0] - begun[0], at[1] - begun[1]


Times = tuple[tuple[float, float], tuple[float, float]]
"""Until all first tokens are there, and from then on."""


def tell(job: dict[str, Any], run: Callable[[], Times]) -> None:
    """Warm up, repeat, and hand over medians: tokens a second, and a processor second, and the time of the first."""
    run()
    found = [run() for _ in range(job["repeat"])]
    tokens = job["batch"] * (job["new"] - 1)
    emit(
        {
            "value": statistics.median(tokens / rest[0] for _, rest in found),
            "per_cpu_second": statistics.median(tokens / rest[1] for _, rest in found),
            "first_token_s": statistics.median(first[0] for first, _ in found),
        }
    )


def less(whole: tuple[float, float], first: tuple[float, float]) -> tuple[float, float]:
    """What is left of both times."""
    return whole[0] - first[0], whole[1] - first[1]


# --- the same model for everybody ------------------------------------------------------------------------------------


def prepare(job: dict[str, Any]) -> None:
    """Write the model in full, in int8 and in int4 for FineTwo; a folder appears whole or not at all."""
    from finetwo.model.config import GPT2Config
    from finetwo.model.network import Network
    from finetwo.model.quantised import quantise
    from finetwo.store.folder import Extras, save_model
    from finetwo.text.tokenizer import Tokenizer
    from finetwo.text.vocabulary import END_OF_TEXT, Vocabulary, byte_order, byte_symbols

    shape = SHAPES[job["shape"]]
    symbols = [byte_symbols()[b] for b in byte_order()]
    pairs = [(a, b) for a in symbols for b in symbols][: shape["vocab_size"] - 257]
    ids = {token: i for i, token in enumerate([*symbols, *(a + b for a, b in pairs)])}
    eot = len(ids)
    tokenizer = Tokenizer(Vocabulary(ids, pairs, {END_OF_TEXT: eot}, eot))
    for kind in (None, "int8", "int4"):
        network = Network.fresh(GPT2Config(**shape, eos_token_id=eot), 0)
        if kind is not None:
            quantise(network, kind)
        into(
            Path(job["models"]) / (kind or "full"), lambda folder, n=network: save_model(folder, n, tokenizer, Extras())
        )
    emit({"value": 1.0})


def prepare_llama(job: dict[str, Any]) -> None:
    """Write the full model as GGUF, matrices in Q8_0 or Q4_0 (the embedding, which is the head, in Q8_0)."""
    import gguf
    import numpy as np

    from finetwo.store.folder import read_config, read_weights

    folder, kind = Path(job["models"]) / "full", gguf.GGMLQuantizationType[job["kind"]]
    config, weights = read_config(folder), read_weights(folder)

    def write(path: Path) -> None:
        path.mkdir()
        writer = gguf.GGUFWriter(path / "model.gguf", "gpt2")
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(config.inner)
        writer.add_block_count(config.n_layer)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("none")
        names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm"}
        names |= {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm"}
        names |= {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
        for name, tensor in weights.items():
            _, _, rest = name.partition("transformer.")
            block = ""
            if rest.startswith("h."):
                _, number, rest = rest.split(".", 2)
                block = f"blk.{number}."
            part, _, what = rest.rpartition(".")
            data = tensor.float().numpy()
            whole = data.ndim == 2 and part != "wpe"
            data = np.ascontiguousarray(data.T) if whole and part != "wte" else data
            used = gguf.GGMLQuantizationType.Q8_0 if part == "wte" else kind
            if whole:
                writer.add_tensor(f"{block}{names[part]}.{what}", gguf.quants.quantize(data, used), raw_dtype=used)
            else:
                writer.add_tensor(f"{block}{names[part]}.{what}", data.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    into(Path(job["models"]) / job["kind"], write)
    emit({"value": 1.0})


def prepare_ctranslate2(job: dict[str, Any]) -> None:
    """Convert the full model to CTranslate2's int8."""
    from ctranslate2.converters import TransformersConverter

    full = str(Path(job["models"]) / "full")
    into(
        Path(job["models"]) / "ctranslate2",
        lambda folder: TransformersConverter(full).convert(str(folder), quantization="int8", force=True),
    )
    emit({"value": 1.0})


def into(folder: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a folder, which takes its name when it is whole."""
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(temporary)
    temporary.rename(folder)


# --- decoding --------------------------------------------------------------------------------------------------------


def finetwo_decoding(job: dict[str, Any]) -> None:
    """Our engine, by what its stream tells."""
    import torch

    from finetwo.app.api import load
    from finetwo.core.config import SamplingConfig
    from finetwo.generate.engine import Engine, Request

    torch.set_num_threads(job["threads"])
    model = load(f"{job['models']}/{job['kind']}", device="cpu")
    engine = Engine(model.network, model.tokenizer, max_slots=max(32, job["batch"]))
    requests = [Request(p, SamplingConfig(max_new_tokens=job["new"], temperature=0.0)) for p in prompts_of(job)]

    def run() -> Times:
        begun = now()
        waiting, tokens = set(range(len(requests))), 0
        for event in engine.stream(requests):
            if waiting:
                waiting.discard(event.request)
                first, after = since(begun), now()
            else:
                tokens += 1
        if tokens != len(requests) * (job["new"] - 1):
            raise SystemExit(f"Error: {tokens} tokens: an answer ended early")
        return first, since(after)

    tell(job, run)


def transformers_decoding(job: dict[str, Any]) -> None:
    """Their generate in float32, less the time of its first token."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(job["threads"])
    model = GPT2LMHeadModel.from_pretrained(f"{job['models']}/full", dtype=torch.float32).eval()
    ids = torch.tensor(prompts_of(job))

    def seconds(new: int) -> tuple[float, float]:
        begun = now()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return since(begun)

    def run() -> Times:
        first = seconds(1)
        return first, less(seconds(job["new"]), first)

    tell(job, run)


def ctranslate2_decoding(job: dict[str, Any]) -> None:
    """Their generator in int8, less the time of its first token."""
    import ctranslate2

    folder = f"{job['models']}/ctranslate2"
    generator = ctranslate2.Generator(folder, device="cpu", compute_type="int8", intra_threads=job["threads"])
    vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
    prompts = [[vocabulary[i] for i in prompt] for prompt in prompts_of(job)]

    def seconds(new: int) -> tuple[float, float]:
        begun = now()
        generator.generate_batch(
            prompts, max_length=new, min_length=new, beam_size=1, sampling_topk=1, include_prompt_in_result=False
        )
        return since(begun)

    def run() -> Times:
        first = seconds(1)
        return first, less(seconds(job["new"]), first)

    tell(job, run)


def llama_decoding(job: dict[str, Any]) -> None:
    """llama.cpp by its own functions: all prompts, then one token of every answer at a time."""
    import llama_cpp as api
    import numpy as np

    api.llama_backend_init()
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, None)
    model = api.llama_model_load_from_file(
        f"{job['models']}/{job['kind']}/model.gguf".encode(), api.llama_model_default_params()
    )
    batch, length = job["batch"], job["prompt"] + job["new"]
    settings = api.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = batch * (length + 32), 512, 512
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = batch, job["threads"], job["threads"]
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    prompts = prompts_of(job)

    def compute(context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, place, answer, whether its logits are wanted)."""
        part = api.llama_batch_init(len(rows), 0, 1)
        part.n_tokens = len(rows)
        for i, (token, place, answer, wanted) in enumerate(rows):
            part.token[i], part.pos[i], part.n_seq_id[i], part.logits[i] = token, place, 1, wanted
            part.seq_id[i][0] = answer
        if api.llama_decode(context, part):
            raise SystemExit("Error: llama_decode failed")
        api.llama_batch_free(part)

    def likeliest(context: Any, row: int) -> int:
        return int(np.ctypeslib.as_array(api.llama_get_logits_ith(context, row), (vocabulary,)).argmax())

    def run() -> Times:
        context = api.llama_init_from_model(model, settings)
        begun, last = now(), []
        for answer, prompt in enumerate(prompts):
            compute(context, [(t, i, answer, i + 1 == len(prompt)) for i, t in enumerate(prompt)])
            last.append(likeliest(context, len(prompt) - 1))
        first, after = since(begun), now()
        for step in range(job["new"] - 1):
            compute(context, [(t, job["prompt"] + step, answer, True) for answer, t in enumerate(last)])
            last = [likeliest(context, row) for row in range(batch)]
        rest = since(after)
        api.llama_free(context)
        return first, rest

    tell(job, run)


PARTS = {
    "prepare": prepare, "prepare llama.cpp": prepare_llama, "prepare ctranslate2": prepare_ctranslate2,
    "finetwo": finetwo_decoding, "transformers": transformers_decoding, "ctranslate2": ctranslate2_decoding,
    "llama.cpp": llama_decoding,
}  # fmt: skip

if __name__ == "__main__":
    PARTS[sys.argv[1]](json.loads(sys.argv[2]))
