"""One optimizer step of an offline method, in strop and in TRL: seconds, useful tokens a second, loss, peak memory.

    python -m benchmarks.offline --model DIR --methods dpo kto --prompt 256 --completion 64 192 --rows 4

Each configuration trains on the same rows from the same weights, in turns (A B C A B C) and each turn in a process of
its own, so that peak memory can be read; the first step of a turn is not counted. Every step sees rows of its own, so
nothing that is remembered from an earlier epoch helps. Needs TRL for the comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")

LIBRARIES = ("strop", "trl tuned", "trl defaults")
CLASSES = {"dpo": "DPO", "kto": "KTO", "orpo": "ORPO", "cpo": "CPO", "reward": "Reward", "sft": "SFT"}
EXPERIMENTAL = {"orpo": "trl.experimental.orpo", "cpo": "trl.experimental.cpo"}


def make_rows(
    method: str, tokenizer: Any, count: int, prompt: int, completion: tuple[int, int], seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of single-token words: `prompt` tokens, and completions of `completion[0]` to `completion[1]` tokens."""
    rng = random.Random(seed)
    words = [w for w in (tokenizer.decode([i]) for i in range(1000, 6000)) if w.startswith(" ") and w[1:].isalpha()]

    def text(length: int) -> str:
        return "".join(rng.choice(words) for _ in range(length))

    def answer() -> str:
        return text(rng.randint(*completion) - 1)

    rows = []
    for index in range(count):
        if method == "kto":
            rows.append({"prompt": text(prompt), "completion": answer(), "label": index % 2 == 0})
        elif method == "sft":
            rows.append({"prompt": text(prompt), "completion": answer()})
        else:
            rows.append({"prompt": text(prompt), "chosen": answer(), "rejected": answer()})
    return rows


def make_trainer(
    library: str, method: str, model: Any, tokenizer: Any, rows: list[dict[str, Any]], steps: int, folder: str
) -> Any:
    """A trainer of either library, ready to run `steps` optimizer steps."""
    import importlib

    from datasets import Dataset

    settings: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": len(rows) // steps, "max_steps": steps,
        "save_strategy": "no", "report_to": "none", "learning_rate": 1e-6, "max_length": 2048, "use_cpu": True,
        "seed": 0,
    }  # fmt: skip
    if library == "strop":
        module: Any = importlib.import_module("strop")
    else:
        module = importlib.import_module(EXPERIMENTAL.get(method, "trl"))
        settings["disable_tqdm"] = True
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


def timed_steps(trainer: Any) -> tuple[list[float], list[float]]:
    """Seconds and losses of the steps of a run."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []
            self.start = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.last)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "train_loss" in logs:
                self.losses.append(logs["train_loss"])

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds, clock.losses


def load(method: str, path: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    options = {"num_labels": 1} if method == "reward" else {}
    return kind.from_pretrained(path, dtype=torch.float32, **options)


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, train a few steps, and report."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = None
    rows = make_rows(method, tokenizer, options.rows * options.steps, options.prompt, tuple(options.completion))
    model = load(method, options.model)
    weights = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(library, method, model, tokenizer, rows, options.steps, folder)
        seconds, losses = timed_steps(trainer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "losses": losses, "peak_bytes": peak, "above_weights_bytes": peak - weights}


def in_child(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own, for its peak memory."""
    command = [
        sys.executable, "-m", "benchmarks.offline", "--model", options.model, "--child", library, "--methods", method,
        "--prompt", str(options.prompt), "--completion", *map(str, options.completion), "--rows", str(options.rows),
        "--steps", str(options.steps),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Alternate the libraries in processes of their own, `options.turns` times each."""
    results: dict[str, list[dict[str, Any]]] = {library: [] for library in options.libraries}
    for _ in range(options.turns):
        for library in options.libraries:
            results[library].append(in_child(library, method, options))
    summary: dict[str, Any] = {}
    for library, turns in results.items():
        counted = [s for turn in turns for s in turn["seconds"][1:]]
        summary[library] = {
            "seconds_per_step": statistics.median(counted),
            "peak_gb": max(turn["peak_bytes"] for turn in turns) / 1e9,
            "above_weights_gb": max(turn["above_weights_bytes"] for turn in turns) / 1e9,
            "mean_loss": turns[0]["losses"][0],
        }
    ours = summary["strop"]
    for _library, numbers in summary.items():
        numbers["times_strop"] = numbers["seconds_per_step"] / ours["seconds_per_step"]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["dpo"], choices=sorted(CLASSES))
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, nargs=2, default=(64, 192))
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=LIBRARIES)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one_turn(options.child, options.methods[0], options)))
        return
    found = {}
    for method in options.methods:
        found[method] = compare(method, options)
        print(method)
        for library, numbers in found[method].items():
            print(
                f"  {library:<13} " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()),
                flush=True,
            )
    if options.output:
        setup = {k: v for k, v in vars(options).items() if k in ("prompt", "completion", "rows", "steps", "turns")}
        options.output.write_text(json.dumps({"setup": setup, "results": found}, indent=1))


if __name__ == "__main__":
    main()
