"""GRPO with a judge, or a tool, that takes its time, in strict order and with `max_staleness`, in turns.

    python -m benchmarks.overlap --windows 2 --steps 80 --seeds 0 1 2
    python -m benchmarks.overlap --windows 0 --parts 1 --seeds 0 1 2
    python -m benchmarks.overlap --tool --seeds 0 1 2

The judge sleeps as a call over the network waits, by default as long as sampling and learning take together, which is
measured first without it, and for a part of a window a part of that: there windows ahead can at best halve the time.
With `--parts` the other order is `stream_prompts`, on policy, of so many prompts. Strict order computes with one thread
or with one for every core, whichever is quicker for it without the judge. A tool is asked twice in every conversation,
and waits so that conversations take as long as learning, where they are quicker without it. The
first two steps of a turn are not counted: they start the process that samples, and fill the queue. Every seed is
trained in both orders, and the reward of its last steps is reported too, since a faster run that learns less is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import Clock
from strop.testing.cases import letters_reward, make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

UNCOUNTED = 2
"""First steps of a turn."""
LAST = 5
"""Steps whose mean reward is what a run has reached."""


def judge(seconds: float, window: int) -> Callable[..., list[float]]:
    """Share of letters of each completion, after a wait of so many seconds for a window of completions."""

    def waits(completions: list[str], **columns: Any) -> list[float]:
        time.sleep(seconds * len(completions) / window)
        return letters_reward(completions)

    return waits


def waiting_tool(seconds: float) -> type:
    """Environments that answer each of two turns after a wait, and reward it by its share of letters."""

    class Waits:
        def reset(self, **row: Any) -> None:
            self.turns = 0

        def step(self, text: str) -> tuple[str, float, bool]:
            time.sleep(seconds / 2)
            self.turns += 1
            return "go on", letters_reward([text])[0] / 2, self.turns == 2

    return Waits


def one_turn(
    windows: int, seconds: float, seed: int, options: argparse.Namespace, parts: int | None = None
) -> dict[str, float]:
    """Train, and say how long a step took, what it waited for, and which reward was reached."""
    tokenizer = toy_tokenizer("chatml" if options.tool else "plain")
    window = options.prompts * options.generations
    rows, given = rows_for("grpo", 4 * options.prompts, seed), {"reward_funcs": judge(seconds, window)}
    if options.tool:
        rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        given = {"reward_funcs": None, "environment_factory": waiting_tool(seconds)}
    size = {"hidden_size": options.hidden, "intermediate_size": 2 * options.hidden, "num_hidden_layers": options.layers}
    model = tiny_model("llama", dtype=torch.float32, seed=seed, vocab_size=len(tokenizer), **size)
    corrected = {"vllm_importance_sampling_mode": options.correction} if windows else {}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            "grpo", folder, rows=rows, model=model, tokenizer=tokenizer, trainer=given, max_steps=options.steps,
            seed=seed, rehearsal=False,
            num_generations=options.generations, max_completion_length=options.completion,
            per_device_train_batch_size=window, max_staleness=windows, stream_prompts=parts,
            learning_rate=options.learning_rate, **corrected,
        )  # fmt: skip
        clock.time(trainer)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    counted = lines[UNCOUNTED:]
    return {
        "windows": windows,
        "seed": seed,
        "step_seconds": statistics.mean(clock.seconds[UNCOUNTED:]),
        "sampling_wait": statistics.mean(line["sampling_time"] for line in counted),
        "rewards_wait": statistics.mean(line["rewards_time"] for line in counted),
        "reward": statistics.mean(line["reward"] for line in lines[-LAST:]),
        "first_reward": lines[0]["reward"],
        "sampling_kl": statistics.mean(
            line.get("sampling/kl", 0.0) for line in counted
        ),  # none where all rewards agree
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All turns, strict and ahead one after the other, and the ratio of their times."""
    cores = torch.get_num_threads()
    alone = {}
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        alone[threads] = one_turn(0, 0.0, options.seeds[0], options)
    threads = min(alone, key=lambda count: alone[count]["step_seconds"])
    seconds, sampling = (alone[threads][name] for name in ("step_seconds", "sampling_wait"))
    if options.judge is not None:
        seconds = options.judge
    elif options.tool:
        seconds = max(seconds - 2 * sampling, sampling)
    turns = []
    for number in range(options.turns * len(options.seeds)):
        for overlapped in (False, True):
            torch.set_num_threads(cores if overlapped and options.windows else threads)
            windows, parts = (options.windows, options.parts) if overlapped else (0, None)
            turns.append(one_turn(windows, seconds, options.seeds[number % len(options.seeds)], options, parts))
            print(json.dumps({name: round(value, 4) for name, value in turns[-1].items()}), flush=True)
    strict, ahead = turns[::2], turns[1::2]
    ratios = [a["step_seconds"] / b["step_seconds"] for a, b in zip(strict, ahead, strict=True)]
    reached = {
        seed: [statistics.mean(t["reward"] for t in kind if t["seed"] == seed) for kind in (strict, ahead)]
        for seed in options.seeds
    }
    return {
        "settings": vars(options) | {"judge": seconds, "output": None, "threads": {"strict": threads, "ahead": cores}},
        "alone": alone,
        "turns": turns,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "reward_strict_ahead": reached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {
        "windows": 2, "turns": 1, "steps": 80, "prompts": 4, "generations": 8, "completion": 48, "hidden": 128,
        "layers": 4,
    }  # fmt: skip
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", type=int, help="prompts learned from together: stream_prompts, with --windows 0")
    parser.add_argument("--judge", type=float, help="seconds of the wait; default: as above")
    parser.add_argument("--tool", action="store_true", help="a tool waits, not the judge")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--correction", default="token_truncate", help="vllm_importance_sampling_mode")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measure(options)
    text = json.dumps(found, indent=1, default=str)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(json.dumps({"ratio": found["ratio"], "reward_strict_ahead": found["reward_strict_ahead"]}))


if __name__ == "__main__":
    main()
