"""One optimizer step of an offline method, in strop and in TRL: seconds, useful tokens a second, loss, peak memory.

    python -m benchmarks.offline --model DIR --methods dpo kto --prompt 512 --completion 128 512 --rows 4

Each configuration trains on the same rows from the same weights, in turns. Every step sees rows of its own, so nothing
that is remembered from an earlier epoch helps. *Useful* tokens are those of the rows themselves, a prompt counted once
for each row. "TRL tuned" is float32 without checkpointing, the settings strop has on a CPU; "TRL defaults" are bfloat16
autocast and checkpointing, "strop bf16" is strop with bfloat16 autocast. Completions have log-normal lengths, as
answers have. *Share of peak* is the time that the needed matrix products take at this machine's peak, over the time of
a step: layers and output layer, and attention below the diagonal. The peak is measured before and after every step, by
the process that trains, since what else a machine does changes it. Needs TRL for the comparison; BCO and PRM need the
last one that had them, 1.13.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import random
import statistics
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

from benchmarks.turns import Clock, peak_bytes, peak_rate, run, touch

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


@dataclass
class Work:
    """What rows ask for: their tokens, those of completions, and the pairs of a token and one that it attends to."""

    tokens: int = 0
    completions: int = 0
    attended: float = 0.0

    def prompt(self, length: int) -> None:
        self.tokens += length
        self.attended += length**2 / 2

    def completion(self, length: int, prompt: int) -> None:
        self.tokens += length
        self.completions += length
        self.attended += length * prompt + length**2 / 2

    def per_step(self, steps: int) -> Work:
        return Work(self.tokens // steps, self.completions // steps, self.attended / steps)


def single_token_words(tokenizer: Any) -> list[str]:
    """Words that are one token each, so that lengths can be chosen."""
    return [w for w in (tokenizer.decode([i]) for i in range(1000, 6000)) if w.startswith(" ") and w[1:].isalpha()]


def make_rows(
    method: str, tokenizer: Any, count: int, prompt: int, completion: tuple[int, int], seed: int = 0
) -> tuple[list[dict[str, Any]], Work]:
    """Rows with prompts of `prompt` tokens and completions of `completion[0]` (median) to `completion[1]` (the most)
    tokens; and what they ask for."""
    rng = random.Random(seed)
    words = single_token_words(tokenizer)
    work = Work()

    def text(length: int) -> str:
        return "".join(rng.choice(words) for _ in range(length))

    def answer() -> str:
        length = min(max(round(rng.lognormvariate(math.log(completion[0]), SPREAD)), 2 * STEPS), completion[1])
        work.completion(length, prompt)
        return text(length - 1)  # and an end of text

    def steps() -> list[str]:
        words = answer().split()
        return [" ".join(words[part::STEPS]) for part in range(STEPS)]

    rows: list[dict[str, Any]] = []
    for index in range(count):
        work.prompt(prompt)
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
    return rows, work


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


def needed_operations(method: str, model: Any, work: Work) -> float:
    """Of a step's matrix products: forward and backward for every token, forward for the reference (and for KTO's
    mismatched completions under both models), and the output layer over the scored tokens.
    """
    body = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "head" not in n)
    head = 0 if method in ("reward", "prm") else model.get_output_embeddings().weight.numel()
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 2 * width * kinds.count("full_attention")
    forwards = {"dpo": (1, 0), "bco": (1, 0), "kto": (1, 2)}  # reference, mismatched completions
    reference, mismatched = forwards.get(method, (0, 0))
    passes = 3 + reference
    return 2 * (
        body * (passes * work.tokens + mismatched * work.completions)
        + head * (passes + mismatched) * work.completions
        + attention * passes * work.attended
    )


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, train a few steps, and report."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = None
    rows, work = make_rows(method, tokenizer, options.rows * options.steps, options.prompt, tuple(options.completion))
    model = load(options.model, method)
    touch(model)
    needed = needed_operations(method, model, work.per_step(options.steps))
    weights, clock = peak_bytes(), Clock(peak_rate)
    with tempfile.TemporaryDirectory() as folder:
        clock.time(make_trainer(library, method, model, tokenizer, rows, options.steps, folder))
    return {
        "seconds": clock.seconds,
        "useful_tokens_per_step": work.tokens / options.steps,
        "of_peak": statistics.median(needed / done for done in clock.possible[1:]),
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
