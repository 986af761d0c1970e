"""What a run says when it does not learn: a line with what to do, once for each kind, and in alarms.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from strop.metric import KL_LIMITS
from strop.settings.config import TrainerConfig
from strop.watch.run_directory import append_jsonl
from strop.watch.say import say

FULL = 1.0 - 1e-9
LONG_ROW = 32_768
"""Tokens of a row that a CPU may work on for minutes."""
MISSING = ("abstained_fraction", "errors_fraction", "timeouts_fraction")
"""Logged shares of a reward's completions that got no number from it."""


class Alarms(TrainerCallback):
    """Watches every log line, and says what the guard of the steps found; `raised` maps kind to message."""

    def __init__(self, args: TrainerConfig) -> None:
        self.args = args
        self.raised: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        found = found_in(logs, vars(args).get("num_generations", 1), args) if "loss" in logs else without_pairs(logs)
        for kind, text in found:
            self.sound(kind, state.global_step, text)

    def before_step(self, step: int, row: int, tokens: int) -> None:
        """What is said before a step that may take very long: `tokens` are those of its longest `row`."""
        if tokens > LONG_ROW and self.args.device.type == "cpu":
            grace = self.args.stop_grace
            stop = "waits for its end (set stop_grace to bound that)" if grace is None else f"waits {grace:g} s for it"
            self.sound(
                "long_row",
                step,
                f"row {row} has {tokens:,} tokens, and a step over so many may take minutes on a CPU. A signal that "
                f"stops the run {stop}. max_length bounds the rows.",
            )

    def sound(self, kind: str, step: int, text: str) -> None:
        """Say it once, write it every time."""
        if self.args.process_index == 0:
            path = Path(str(self.args.output_dir)) / "alarms.jsonl"
            append_jsonl(path, [{"step": step, "alarm": kind, "text": text}])
        if kind not in self.raised:
            self.raised[kind] = f"Warning [{kind}] step {step}: {text}"
            say(self.args, self.raised[kind])


def without_pairs(logs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, text) of every evaluation in a log line that made no pair, so that its loss is not a number."""
    for name, share in logs.items():
        if name.startswith("eval_") and name.endswith("pairs/dropped_ratio") and share >= FULL:
            yield (
                "no_pair",
                f"the completions of every prompt of this evaluation are equal or equally good ({name} is 1): there "
                f"is no pair, and {name.replace('pairs/dropped_ratio', 'loss')} is not a number. Evaluate on more "
                "prompts, raise num_generations_eval or the temperature, or reward parts of an answer.",
            )


def found_in(logs: Mapping[str, Any], num_generations: int, args: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of every alarm that a log line gives reason for."""

    def value(name: str) -> float:
        number = logs.get(name)
        return float(number) if isinstance(number, (int, float)) and math.isfinite(number) else 0.0

    flat = value("frac_reward_zero_std") >= FULL and num_generations > 1
    if unrewarded := no_reward_at_all(logs):
        yield (
            "abstained",
            f"no completion got a reward: {unrewarded}. Nothing can be learned from these. Look at them in "
            "samples.jsonl, and at what the rewards expect; None is for completions that a reward cannot judge.",
        )
    elif flat or value("pairs/dropped_ratio") >= FULL:
        yield (
            "zero_variance_groups",
            "all completions of every prompt got the same reward, so there is nothing to compare and nothing to learn. "
            "The task is too hard or too easy for the model, or the reward is too coarse: read samples.jsonl, raise "
            "the temperature or num_generations, or reward parts of an answer.",
        )
    if logs.get("tools/call_frequency") == 0:
        yield (
            "no_tool_calls",
            "tools were offered and no completion called one. Read samples.jsonl: the model may not know how to, "
            "write calls in another form than its chat template, or run out of tokens before them.",
        )
    if still_running := math.ceil(value("turns/left_behind")):  # a mean over rounds and processes
        yield (
            "left_behind",
            f"{still_running} calls of tools, environments or agents did not end in time and still run, in threads "
            "that nothing can end: their memory, connections and locks stay held. Give such a call a limit of its own "
            "(the timeout of its client), or make it async; environment_isolation=True kills an environment, and an "
            "agent that is a command line is killed.",
        )
    if value("completions/clipped_ratio") >= FULL:
        yield (
            "all_truncated",
            f"every completion was cut off at max_completion_length={getattr(args, 'max_completion_length', None)}: "
            "the model never ended by itself. Raise max_completion_length, or check that the chat template and "
            "eos_token match the model.",
        )
    if max(value("clip_ratio/region_mean"), value("policy/clipfrac_avg")) >= FULL:
        yield (
            "all_clipped",
            "every token's ratio is outside the clip range, so no gradient is left. Lower the learning rate or "
            "num_iterations; with vLLM look at sampling/sampling_logp_difference/mean.",
        )
    for name, (limit, per) in KL_LIMITS.items():
        if args.kl_is_distance and value(name) > limit:
            yield (
                "kl",
                f"{name} is {value(name):.3g} nats per {per}, over {limit:g}: policy and reference have little in "
                "common. Read samples.jsonl; lower the learning rate or raise beta.",
            )


def no_reward_at_all(logs: Mapping[str, Any]) -> str:
    """Which rewards abstained from all completions, or failed on all that are left out; empty if one gave a number."""
    shares: dict[str, float] = {}  # name -> share of completions without a number
    for key, share in logs.items():
        kind, _, rest = key.partition("/")
        name, _, fate = rest.rpartition("/")
        if kind != "rewards" or not name:
            continue
        if fate == "mean":
            return ""
        if fate in MISSING:
            shares[name] = shares.get(name, 0.0) + share
    missing = [name for name, share in shares.items() if share >= FULL]
    silent = [name for name in missing if logs.get(f"rewards/{name}/abstained_fraction", 0.0) >= FULL]
    failed = [name for name in missing if name not in silent]
    said = [f"{', '.join(silent)} returned None for every one"] if silent else []
    return "; ".join(said + ([f"{', '.join(failed)} failed on every one"] if failed else []))
