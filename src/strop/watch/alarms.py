"""What a run says when it breaks or does not learn: a line with what to do, once for each kind, and in alarms.jsonl.

A non-finite loss or gradient never reaches the weights: the run stops before the optimizer step (`on_nonfinite`
"stop"), or leaves the step out ("skip"). The rows are named, and the batch is in the run's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from strop.errors import NonFiniteError
from strop.records import StepWork
from strop.watch.run_directory import append_jsonl

FULL = 1.0 - 1e-9
KL_LIMITS = {"kl": (1.0, "token"), "objective/kl": (100.0, "completion")}
"""Logged KL (nats) above which policy and reference have little in common, and what it is counted per."""
MISSING = ("abstained_fraction", "errors_fraction", "timeouts_fraction")
"""Logged shares of a reward's completions that got no number from it."""
MAX_ROWS_NAMED = 12


class Alarms(TrainerCallback):
    """Watches every step and every log line. `trainer` is set once the trainer exists; `raised` maps kind to
    message."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.raised: dict[str, str] = {}

    # ---- every step -------------------------------------------------------------------------------------------

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the weights move: whether what moves them is finite, and whether there is anything at all."""
        work, norm = self.trainer.step_work, self.trainer.step_grad_norm
        if work is None:
            return
        step = state.global_step + 1
        scaled = (
            getattr(self.trainer.accelerator, "scaler", None) is not None
        )  # a float16 scaler skips such steps itself
        loss_is_finite, norm_is_finite, norm_is_zero = self.facts(work, norm)
        if not loss_is_finite or (not norm_is_finite and not scaled):
            self.nonfinite(args, step, work, "loss" if not loss_is_finite else "gradient")
        elif not any(work.counts.get(name) for name in ("tokens", "prompt_tokens")):
            self.nothing_supervised(step, work)
        elif norm_is_zero and norm_is_finite:
            self.sound(
                "zero_gradient",
                step,
                "the gradient is exactly zero, so nothing was learned. Either all rewards of each group are equal, "
                "or every "
                "loss is at a flat end, or no trained weight takes part. Look at the logged rewards and at "
                "samples.jsonl; "
                "check that the model has weights with requires_grad.",
            )

    def facts(self, work: StepWork, norm: Any) -> tuple[bool, bool, bool]:
        """Whether the loss is finite on all ranks, whether the gradient's norm is, and whether that is 0."""
        device = self.trainer.args.device
        losses = torch.stack(work.losses).to(device) if work.losses else torch.zeros(1, device=device)
        norm = torch.as_tensor(0.0 if norm is None else norm, device=device).detach().float()
        flags = torch.stack([(~losses.isfinite()).any(), ~norm.isfinite(), norm != 0]).float()
        if self.trainer.args.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        bad_loss, bad_norm, moves = flags.tolist()
        return not bad_loss, not bad_norm, not moves

    def nonfinite(self, args: Any, step: int, work: StepWork, what: str) -> None:
        """Name the rows, keep the batch, and stop or leave the step out."""
        suspects = [part for part, loss in zip(work.parts, work.losses, strict=True) if not bool(loss.isfinite())]
        examples = [example for part in suspects or work.parts for example in part]
        rank = f"-rank{args.process_index}" if args.world_size > 1 else ""
        path = Path(args.output_dir) / f"nonfinite-step-{step}{rank}.jsonl"
        append_jsonl(path, self.plain(work))
        rows = sorted({example.row for example in examples})
        named = ", ".join(map(str, rows[:MAX_ROWS_NAMED])) + (
            f" and {len(rows) - MAX_ROWS_NAMED} more" if len(rows) > MAX_ROWS_NAMED else ""
        )
        found = (
            f"the {what} is not finite, from {'rows' if len(rows) != 1 else 'row'} {named}. The weights are still "
            f"those of "
            f"step {step - 1}; the batch is in {path}."
        )
        if args.on_nonfinite == "skip":
            self.trainer.model.zero_grad(set_to_none=True)
            self.sound(
                "nonfinite",
                step,
                f"{found} The step is left out (on_nonfinite='skip'); later ones are listed in alarms.jsonl.",
            )
            return
        raise NonFiniteError(
            f"Step {step}: {found} Look at these rows; a lower learning_rate, a smaller max_grad_norm or bf16 "
            f"instead of "
            "fp16 often help. Then resume with resume_from_checkpoint=True, or set on_nonfinite='skip' to leave "
            "such steps out."
        )

    def plain(self, work: StepWork) -> Iterator[dict[str, Any]]:
        """The trees of a step as JSON lines: row, ids, text, extras, and the loss of their micro-batch."""
        decode = self.trainer.processing_class.batch_decode
        for number, (part, loss) in enumerate(zip(work.parts, work.losses, strict=True)):
            for example in part:
                yield {
                    "row": example.row,
                    "micro_batch": number,
                    "micro_batch_loss": repr(float(loss)),
                    "prompt": decode([example.prompt_ids])[0] if example.prompt_ids else "",
                    "completions": decode(example.completions),
                    **{name: value for name, value in example.to_plain().items() if name not in ("row", "completions")},
                    "completion_ids": example.completions,
                }

    def nothing_supervised(self, step: int, work: StepWork) -> None:
        if work.counts.get("trees"):
            advice = (
                "Every completion of the step is masked or cut away. Raise max_length or max_completion_length, "
                "or mend the masks."
            )
        else:
            advice = (
                "All rows of the step were left out, because their completions are equal or equally good. "
                "See pairs/dropped_ratio."
            )
        self.sound("nothing_supervised", step, f"no token was learned from. {advice}")

    # ---- every log line ---------------------------------------------------------------------------------------

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Alarms that follow from logged means."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        for kind, text in found_in(logs, getattr(args, "num_generations", 1), args):
            self.sound(kind, state.global_step, text)

    def sound(self, kind: str, step: int, text: str) -> None:
        """Say it once, write it every time."""
        if self.trainer.args.process_index == 0:
            append_jsonl(
                Path(self.trainer.args.output_dir) / "alarms.jsonl", [{"step": step, "alarm": kind, "text": text}]
            )
        if kind not in self.raised:
            self.raised[kind] = f"Warning [{kind}] step {step}: {text}"
            self.trainer.say(self.raised[kind])


def found_in(logs: Mapping[str, Any], num_generations: int, args: Any) -> Iterator[tuple[str, str]]:
    """(kind, text) of every alarm that a log line gives reason for."""

    def value(name: str) -> float:
        number = logs.get(name)
        return float(number) if isinstance(number, (int, float)) and math.isfinite(number) else 0.0

    flat = value("frac_reward_zero_std") >= FULL and num_generations > 1
    if unrewarded := no_reward_at_all(logs):
        yield (
            "abstained",
            (
                f"no completion got a reward: {unrewarded}. Nothing can be learned from these. Look at them in "
                "samples.jsonl, and at what the rewards expect; None is for completions that a reward cannot judge."
            ),
        )
    elif flat or value("pairs/dropped_ratio") >= FULL:
        yield (
            "zero_variance_groups",
            (
                "all completions of every prompt got the same reward, so there is nothing to compare and nothing to "
                "learn. "
                "The task is too hard or too easy for the model, or the reward is too coarse: read samples.jsonl, "
                "raise the "
                "temperature or num_generations, or reward parts of an answer."
            ),
        )
    if value("completions/clipped_ratio") >= FULL:
        yield (
            "all_truncated",
            (
                "every completion was cut off at max_completion_length="
                f"{getattr(args, 'max_completion_length', None)}: the model never ended by itself. "
                "Raise max_completion_length, or check that the chat template and eos_token match the model."
            ),
        )
    if max(value("clip_ratio/region_mean"), value("policy/clipfrac_avg")) >= FULL:
        yield (
            "all_clipped",
            (
                "every token's ratio is outside the clip range, so no gradient is left. Lower the learning rate or "
                "num_iterations; with vLLM look at sampling/sampling_logp_difference/mean."
            ),
        )
    for name, (limit, per) in KL_LIMITS.items():
        if args.method != "kto" and value(name) > limit:
            yield (
                "kl",
                (
                    f"{name} is {value(name):.3g} nats per {per}, over {limit:g}: policy and reference have little "
                    f"in common. "
                    "Read samples.jsonl; lower the learning rate or raise beta."
                ),
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
