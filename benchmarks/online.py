"""Whole optimizer steps of online methods, sampling included, in strop and in TRL, in turns.

    python -m benchmarks.online --model DIR --methods grpo rloo --prompts 2 --generations 8 --prompt 128 --completion 64

Each library samples its own completions, up to `--completion` tokens, with temperature 1. Needs TRL for the comparison.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.offline import load, timed_steps

CLASSES = {"grpo": "GRPO", "rloo": "RLOO", "online-dpo": "OnlineDPO", "gkd": "GKD"}
EXPERIMENTAL = {"online-dpo": "trl.experimental.online_dpo", "gkd": "trl.experimental.gkd"}
LIBRARIES = ("strop", "trl tuned")


def letters(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that differs between completions and costs nothing."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in texts]


def make_rows(method: str, tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    rng = random.Random(0)
    words = [w for w in (tokenizer.decode([i]) for i in range(1000, 6000)) if w.startswith(" ") and w[1:].isalpha()]
    rows = []
    for _ in range(options.prompts * options.steps):
        text = "".join(rng.choice(words) for _ in range(options.prompt))
        if method == "gkd":
            answer = "".join(rng.choice(words) for _ in range(options.completion))
            rows.append({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]})
        else:
            rows.append({"prompt": text})
    return rows


def make_trainer(library: str, method: str, options: argparse.Namespace, folder: str) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    group = {"online-dpo": 2, "gkd": 1}.get(method, options.generations)
    module: Any = importlib.import_module("strop" if library == "strop" else EXPERIMENTAL.get(method, "trl"))
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": options.steps, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "learning_rate": 1e-6, "use_cpu": True, "seed": 0, "temperature": 1.0,
        "per_device_train_batch_size": options.prompts * (group if method in ("grpo", "rloo") else 1),
    }  # fmt: skip
    if method in ("grpo", "rloo"):
        settings |= {"num_generations": group, "max_completion_length": options.completion}
    else:
        settings |= {"max_new_tokens": options.completion}
    if method == "gkd":
        settings |= {"lmbda": 1.0, "max_length": 1024}
    if library == "strop":
        if method == "online-dpo":
            settings["per_device_train_batch_size"] *= 2
    else:
        settings |= {"bf16": False, "gradient_checkpointing": False, "disable_tqdm": True}
    extra: dict[str, Any] = (
        {"teacher_model": load("gkd", options.model)} if method == "gkd" else {"reward_funcs": letters}
    )
    return getattr(module, f"{CLASSES[method]}Trainer")(
        model=load(method, options.model),
        args=getattr(module, f"{CLASSES[method]}Config")(**settings),
        train_dataset=Dataset.from_list(make_rows(method, tokenizer, options)),
        processing_class=tokenizer,
        **extra,
    )


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = timed_steps(make_trainer(library, method, options, folder))
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def in_child(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    numbers = ("prompts", "generations", "prompt", "completion", "steps")
    flags = [word for name in numbers for word in (f"--{name}", str(getattr(options, name)))]
    command = [
        sys.executable,
        "-m",
        "benchmarks.online",
        "--model",
        options.model,
        "--child",
        library,
        "--methods",
        method,
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(method: str, options: argparse.Namespace) -> dict[str, Any]:
    turns = [(library, in_child(library, method, options)) for _ in range(options.turns) for library in LIBRARIES]
    summary = {}
    for library in LIBRARIES:
        own = [turn for name, turn in turns if name == library]
        # Steps differ in length where completions end early, so a turn's mean step is taken, without its first.
        means = [statistics.mean(turn["seconds"][1:]) for turn in own]
        summary[library] = {
            "seconds_per_step": statistics.median(means),
            "peak_gb": max(t["peak_bytes"] for t in own) / 1e9,
        }
    for numbers in summary.values():
        numbers["times_strop"] = numbers["seconds_per_step"] / summary["strop"]["seconds_per_step"]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["grpo"], choices=sorted(CLASSES))
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", choices=LIBRARIES)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(one_turn(options.child, options.methods[0], options)))
        return
    found = {method: compare(method, options) for method in options.methods}
    for method, summary in found.items():
        print(method)
        for library, numbers in summary.items():
            print(f"  {library:<10} " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
