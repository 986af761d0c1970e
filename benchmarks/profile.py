"""Where the time of an optimizer step goes, part by part: the operators of one step, by torch's profiler.

    python -m benchmarks.profile --model DIR --methods sft dpo kto grpo --name profile

The second step of a run is looked at: the first one pays for memory that later steps use again. An operator's time is
its own, without that of the operators it calls. Operators are put together by what they are for; what is left of the
step's time is "outside": Python, and an operator's way to its kernel. Rows are those of `benchmarks.offline` and
`benchmarks.online`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks import offline, online
from benchmarks.turns import RESULTS, touch, write

PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn", "mkl_linear"),
    "attention": ("flash_attention", "scaled_dot_product", "strop::"),
    "optimizer": ("_fused_adam", "_foreach_", "adam"),
    "softmax and log-probs": ("softmax", "logsumexp", "exp", "log", "nll", "gather", "max", "argmax"),
    "copies": ("copy", "cat", "index", "slice_backward", "select_backward", "new_zeros", "zero", "fill", "clone",
               "scatter", "stack", "embedding", "resize", "empty", "constant_pad", "masked"),
    "arithmetic on activations": ("mul", "add", "sub", "div", "silu", "gelu", "sigmoid", "rsqrt", "pow", "mean", "sum",
                                  "neg", "rms_norm", "layer_norm", "sqrt", "norm", "where", "cos", "sin"),
}  # fmt: skip
"""What an operator is for, by a piece of its name; the first part that fits."""


def part_of(operator: str) -> str:
    """The part that an operator counts in."""
    name = operator.removeprefix("aten::")
    whole = name.strip("_").removesuffix("_backward")
    for part, pieces in PARTS.items():
        if whole in pieces or (part != "matrix products" and any(piece in name for piece in pieces)):
            return part
    return "other operators"


class SecondStep(TrainerCallback):
    """Profiles the second step and ends the run."""

    seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.__enter__()
            self.start = time.perf_counter()
        elif state.global_step == 2:
            self.seconds = time.perf_counter() - self.start
            self.profiler.__exit__(None, None, None)
            control.should_training_stop = True


def trainer_of(method: str, options: argparse.Namespace, folder: str) -> Any:
    """strop's trainer for a method, over the rows that the other benchmarks measure."""
    if method in online.CLASSES:
        models = online.load_models(method, options)
        return online.make_trainer("strop", method, models, options, folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = None
    rows, _ = offline.make_rows(method, tokenizer, 2 * options.rows, 512, (128, 512))
    model = offline.load(options.model, method)
    touch(model)
    return offline.make_trainer("strop", method, model, tokenizer, rows, 2, folder)


def profile(method: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part of a step; "step" is all of it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, seen = trainer_of(method, options, folder), SecondStep()
        trainer.add_callback(seen)
        trainer.train()
    return {"step": seen.seconds, **shares(seen.profiler.key_averages(), seen.seconds, options.operators)}


def shares(operators: Iterable[Any], step: float, shown: int = 0) -> dict[str, float]:
    """Seconds by part, the largest first, and what no operator accounts for."""
    parts: dict[str, float] = {}
    ordered = sorted(operators, key=lambda operator: -operator.self_cpu_time_total)
    for operator in ordered:
        if operator.key.startswith(("aten::", "strop::")):
            part = part_of(operator.key)
            parts[part] = parts.get(part, 0.0) + operator.self_cpu_time_total / 1e6
    for operator in ordered[:shown]:
        print(f"  {operator.self_cpu_time_total / 1e6:8.3f}s {operator.count:7d}  {operator.key}")
    parts["outside"] = max(0.0, step - sum(parts.values()))
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["sft", "dpo", "kto", "grpo"])
    parser.add_argument("--rows", type=int, default=2, help="rows of a step of an offline method")
    parser.add_argument("--operators", type=int, default=0, help="also print so many of the costliest operators")
    parser.add_argument("--name", help="also write the result to benchmarks/results/NAME.json")
    options = parser.parse_args()
    for name, value in {"prompts": 2, "generations": 8, "prompt": 128, "completion": 64, "steps": 2}.items():
        setattr(options, name, value)
    found: dict[str, Any] = {}
    for method in options.methods:
        found[method] = profile(method, options)
        print(method, json.dumps({part: round(seconds, 3) for part, seconds in found[method].items()}), flush=True)
    if options.name:
        for name in ("prompts", "generations", "prompt", "completion", "steps"):
            delattr(options, name)
        write(RESULTS / f"{options.name}.json", "benchmarks.profile", options, found)


if __name__ == "__main__":
    main()
