"""One optimizer step of an offline method, in strop and in TRL: seconds, useful tokens a second, loss, peak memory.

    python -m benchmarks.offline --model DIR --methods dpo kto --prompt 512 --completion 128 128 --rows 4

Each configuration trains on the same rows from the same weights, in turns. Every step sees rows of its own, so nothing
that is remembered from an earlier epoch helps. *Useful* tokens are those of the rows themselves, a prompt counted once
for each row. "TRL tuned" is float32 without checkpointing, the settings strop has on a CPU; "TRL defaults" are bfloat16
autocast and checkpointing, "strop bf16" is strop with bfloat16 autocast. Needs TRL for the comparison.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import tempfile
import warnings
from typing import Any

from benchmarks.turns import Clock, peak_bytes, run, touch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")

LIBRARIES = ("strop", "strop bf16", "trl tuned", "trl defaults")
CLASSES = {"dpo": "DPO", "kto": "KTO", "orpo": "ORPO", "cpo": "CPO", "reward": "Reward", "sft": "SFT"}
EXPERIMENTAL = {"orpo": "trl.experimental.orpo", "cpo": "trl.experimental.cpo"}


def single_token_words(tokenizer: Any) -> list[str]:
    """Words that are one token each, so that lengths can be chosen."""
    return [w for w in (tokenizer.decode([i]) for i in range(1000, 6000)) if w.startswith(" ") and w[1:].isalpha()]


def make_rows(
    method: str, tokenizer: Any, count: int, prompt: int, completion: tuple[int, int], seed: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """Rows of `prompt` tokens and completions of `completion[0]` to `completion[1]` tokens; and their tokens in all."""
    rng = random.Random(seed)
    words = single_token_words(tokenizer)
    tokens = count * prompt

    def text(length: int) -> str:
        return "".join(rng.choice(words) for _ in range(length))

    def answer() -> str:
        nonlocal tokens
        length = rng.randint(*completion)
        tokens += length
        return text(length - 1)  # and an end of text

    rows: list[dict[str, Any]] = []
    for index in range(count):
        if method == "kto":
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
        if method in ("orpo", "cpo"):
            settings["max_completion_length"] = 1024
    if method == "cpo":
        settings["cpo_alpha"] = 1.0
    args = getattr(module, f"{CLASSES[method]}Config")(**settings)
    return getattr(module, f"{CLASSES[method]}Trainer")(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def load(path: str, *, scores: bool = False) -> Any:
    """The float32 model, with a score head for reward models."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32, **({"num_labels": 1} if scores else {}))


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, train a few steps, and report."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = None
    rows, tokens = make_rows(method, tokenizer, options.rows * options.steps, options.prompt, tuple(options.completion))
    model = load(options.model, scores=method == "reward")
    touch(model)
    weights, clock = peak_bytes(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        clock.time(make_trainer(library, method, model, tokenizer, rows, options.steps, folder))
    return {
        "seconds": clock.seconds,
        "useful_tokens_per_step": tokens / options.steps,
        "loss": clock.logs["train_loss"],
        "peak_bytes": peak_bytes(),
        "above_weights_bytes": peak_bytes() - weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["dpo"], choices=sorted(CLASSES))
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--completion", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    run("benchmarks.offline", parser, one_turn, LIBRARIES)


if __name__ == "__main__":
    main()
