"""One optimizer step of an offline method, in strop and in TRL: seconds, useful tokens a second, loss, peak memory.

    python -m benchmarks.offline --model DIR --methods dpo kto --prompt 512 --completion 128 512 --rows 4

Each configuration trains on the same rows from the same weights, in turns. Every step sees rows of its own, so nothing
that is remembered from an earlier epoch helps. *Useful* tokens are those of the rows themselves, a prompt counted once
for each row. "TRL tuned" is float32 without checkpointing, the settings strop has on a CPU; "TRL defaults" are bfloat16
autocast and checkpointing, "strop bf16" is strop with bfloat16 autocast. Completions have log-normal lengths, as
answers have. *Share of peak* is the time that the needed matrix products take at the peak that this process measures,
over the time of a step. Needs TRL for the comparison; BCO and PRM need the last one that had them, 1.13.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from typing import Any

from benchmarks.turns import Clock, peak_bytes, run, touch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")

LIBRARIES = ("strop", "strop bf16", "trl tuned", "trl defaults")
CLASSES = {
    "sft": "SFT", "reward": "Reward", "dpo": "DPO", "kto": "KTO",
    "bco": "BCO", "orpo": "ORPO", "cpo": "CPO", "prm": "PRM",
}  # fmt: skip
EXPERIMENTAL = {name: f"trl.experimental.{name}" for name in ("orpo", "cpo", "bco", "prm")}
SPREAD = 0.5
"""Standard deviation of the logarithm of a completion's length."""
STEPS = 4
"""Steps of a solution that a process reward model judges."""


def single_token_words(tokenizer: Any) -> list[str]:
    """Words that are one token each, so that lengths can be chosen."""
    return [w for w in (tokenizer.decode([i]) for i in range(1000, 6000)) if w.startswith(" ") and w[1:].isalpha()]


def make_rows(
    method: str, tokenizer: Any, count: int, prompt: int, completion: tuple[int, int], seed: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """Rows with prompts of `prompt` tokens and completions of `completion[0]` (median) to `completion[1]` (the most)
    tokens; and all their tokens."""
    rng = random.Random(seed)
    words = single_token_words(tokenizer)
    tokens = count * prompt

    def text(length: int) -> str:
        return "".join(rng.choice(words) for _ in range(length))

    def answer() -> str:
        nonlocal tokens
        length = min(max(round(rng.lognormvariate(math.log(completion[0]), SPREAD)), 2 * STEPS), completion[1])
        tokens += length
        return text(length - 1)  # and an end of text

    def steps() -> list[str]:
        words = answer().split()
        return [" ".join(words[part::STEPS]) for part in range(STEPS)]

    rows: list[dict[str, Any]] = []
    for index in range(count):
        if method == "prm":
            rows.append(
                {"prompt": text(prompt), "completions": steps(), "labels": [True] * (STEPS - 1) + [index % 2 == 0]}
            )
        elif method in ("kto", "bco"):
            rows.append({"prompt": text(prompt), "completion": answer(), "label": index % 2 == 0})
        elif method == "sft":
            rows.append({"prompt": text(prompt), "completion": answer()})
        else:
            rows.append({"prompt": text(prompt), "chosen": answer(), "rejected": answer()})
    return rows, tokens


def make_trainer(
    library: str, method: str, model: Any, tokenizer: Any, rows: list[dict[str, Any]], steps: int, folder: str
) -> Any:
    """A trainer of either library, ready to run `steps` optimizer steps."""
    from datasets import Dataset

    settings: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": len(rows) // steps, "max_steps": steps,
        "save_strategy": "no", "report_to": "none", "learning_rate": 1e-6, "max_length": 2048, "use_cpu": True,
        "seed": 0, "disable_tqdm": True,
    }  # fmt: skip
    if library.startswith("strop"):
        module: Any = importlib.import_module("strop")
        settings["bf16"] = library == "strop bf16"
    else:
        module = importlib.import_module(EXPERIMENTAL.get(method, "trl"))
        if library == "trl tuned":
            settings |= {"bf16": False, "gradient_checkpointing": False}
        if method in ("orpo", "cpo", "bco", "prm"):
            settings["max_completion_length"] = 1024
    if method == "cpo":
        settings["cpo_alpha"] = 1.0
    args = getattr(module, f"{CLASSES[method]}Config")(**settings)
    return getattr(module, f"{CLASSES[method]}Trainer")(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def load(path: str, method: str = "") -> Any:
    """The float32 model, with the head that a reward model (one score) or a process reward model (two labels) has."""
    import torch
    import transformers

    torch.manual_seed(0)
    heads = {"reward": ("SequenceClassification", 1), "prm": ("TokenClassification", 2)}
    kind, labels = heads.get(method, ("CausalLM", 0))
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        path, dtype=torch.float32, **({"num_labels": labels} if labels else {})
    )
    if labels:
        model.config.pad_token_id = model.config.eos_token_id  # TRL asks for one
    return model


def peak_rate() -> float:
    """Floating-point operations a second in a large float32 matrix product, here and now."""
    import torch

    side = 2048
    matrix = torch.randn(side, side)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def needed_operations(method: str, model: Any, tokens: float, completions: float) -> float:
    """Of a step's matrix products outside attention: forward and backward for every token, forward for the reference
    (and for KTO's mismatched completions under both models), and the output layer over the scored tokens.
    """
    body = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "head" not in n)
    head = 0 if method in ("reward", "prm") else model.get_output_embeddings().weight.numel()
    forwards = {"dpo": (tokens, completions), "bco": (tokens, completions)}
    forwards["kto"] = (tokens + 2 * completions, 3 * completions)
    more, more_scored = forwards.get(method, (0, 0))
    return 2 * (body * (3 * tokens + more) + head * (3 * completions + more_scored))


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, train a few steps, and report."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = None
    rows, tokens = make_rows(method, tokenizer, options.rows * options.steps, options.prompt, tuple(options.completion))
    model = load(options.model, method)
    touch(model)
    completions = tokens / options.steps - options.rows * options.prompt
    needed = needed_operations(method, model, tokens / options.steps, completions) / peak_rate()
    weights, clock = peak_bytes(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        clock.time(make_trainer(library, method, model, tokenizer, rows, options.steps, folder))
    return {
        "seconds": clock.seconds,
        "useful_tokens_per_step": tokens / options.steps,
        "share_of_peak": needed / statistics.median(clock.seconds[1:]),
        "loss": clock.logs["train_loss"],
        "peak_bytes": peak_bytes(),
        "above_weights_bytes": peak_bytes() - weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["dpo"], choices=sorted(CLASSES))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--completion", type=int, nargs=2, default=(128, 512), metavar=("MEDIAN", "LONGEST"))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    run("benchmarks.offline", parser, one_turn, LIBRARIES)


if __name__ == "__main__":
    main()
