"""Whether the weights may move: every step's loss and gradient are looked at before the optimizer sees them.

A loss or gradient that is not finite never reaches the weights: the run stops (`on_nonfinite` "stop"), or the step is
left out ("skip"). The rows are named, and the batch is in the run's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from strop.errors import NonFiniteError
from strop.records import StepWork
from strop.settings.config import TrainerConfig
from strop.watch.alarms import Alarms
from strop.watch.run_directory import append_jsonl

MAX_ROWS_NAMED = 12


class Guard:
    """`guard(work, model, step)` after the backward passes of a step and before its optimizer step."""

    def __init__(self, args: TrainerConfig, alarms: Alarms, tokenizer: Any) -> None:
        self.args, self.alarms, self.tokenizer = args, alarms, tokenizer

    def __call__(self, work: StepWork, model: torch.nn.Module, step: int, *, gradients: str = "plain") -> None:
        """Stop, empty the gradients, or say that there is nothing to learn from.

        Args:
            work: the step, with the losses of its micro-batches.
            model: whose gradients would move its weights.
            step: its number, the first is 1.
            gradients: "plain"; "scaled", where a float16 scaler leaves steps out by itself; "elsewhere", where they
                are not to be found at the weights (DeepSpeed).

        Raises:
            NonFiniteError: `on_nonfinite` is "stop" and the loss or the gradient is not finite.
        """
        norm = torch.ones(()) if gradients == "elsewhere" else local_norm(model.parameters())
        loss_is_finite, norm_is_finite, norm_is_zero = self.facts(work, norm)
        if not loss_is_finite or (not norm_is_finite and gradients == "plain"):
            what = "loss" if not loss_is_finite else "gradient"
            self.nonfinite(work, model, step, what, scaled=gradients == "scaled")
        elif not any(work.counts.get(name) for name in ("tokens", "prompt_tokens")):
            self.nothing_supervised(step, work)
        elif norm_is_zero and norm_is_finite:
            self.alarms.sound(
                "zero_gradient",
                step,
                "the gradient is exactly zero, so nothing was learned. Either all rewards of each group are equal, or "
                "every loss is at a flat end, or no trained weight takes part. Look at the logged rewards and at "
                "samples.jsonl; check that the model has weights with requires_grad.",
            )

    def facts(self, work: StepWork, norm: torch.Tensor) -> tuple[bool, bool, bool]:
        """Whether the loss is finite on all ranks, whether the gradient is, and whether that is 0."""
        device = self.args.device
        losses = torch.stack(work.losses).to(device) if work.losses else torch.zeros(1, device=device)
        norm = norm.detach().float().to(device)
        flags = torch.stack([(~losses.isfinite()).any(), ~norm.isfinite(), norm != 0]).float()
        if self.args.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        bad_loss, bad_norm, moves = flags.tolist()
        return not bad_loss, not bad_norm, not moves

    def nonfinite(self, work: StepWork, model: torch.nn.Module, step: int, what: str, *, scaled: bool) -> None:
        """Name the rows, keep the batch, and stop or leave the step out."""
        args = self.args
        suspects = [part for part, loss in zip(work.parts, work.losses, strict=True) if not bool(loss.isfinite())]
        examples = [example for part in suspects or work.parts for example in part]
        rank = f"-rank{args.process_index}" if args.world_size > 1 else ""
        path = Path(str(args.output_dir)) / f"nonfinite-step-{step}{rank}.jsonl"
        append_jsonl(path, self.plain(work))
        rows = sorted({example.row for example in examples})
        named = ", ".join(map(str, rows[:MAX_ROWS_NAMED])) + (
            f" and {len(rows) - MAX_ROWS_NAMED} more" if len(rows) > MAX_ROWS_NAMED else ""
        )
        found = (
            f"the {what} is not finite, from {'rows' if len(rows) != 1 else 'row'} {named}. The weights are still "
            f"those of step {step - 1}; the batch is in {path}."
        )
        if args.on_nonfinite != "skip":
            raise NonFiniteError(
                f"Step {step}: {found} Look at these rows; a lower learning_rate, a smaller max_grad_norm or bf16 "
                "instead of fp16 often help. Then resume with resume_from_checkpoint=True (on the command line "
                "--resume), or set on_nonfinite='skip' to leave such steps out."
            )
        if scaled:  # the scaler leaves a step out by what it finds, and asks for something to look at
            for gradient in (p.grad for p in model.parameters() if p.grad is not None):
                gradient.fill_(float("nan"))
        else:
            model.zero_grad(set_to_none=True)
        self.alarms.sound(
            "nonfinite",
            step,
            f"{found} The step is left out (on_nonfinite='skip'); later ones are listed in alarms.jsonl.",
        )

    def plain(self, work: StepWork) -> Iterator[dict[str, Any]]:
        """The trees of a step as JSON lines: row, ids, text, extras, and the loss of their micro-batch."""
        decode = self.tokenizer.batch_decode
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
                "Every completion of the step is masked or cut away. Raise max_length or max_completion_length, or "
                "mend the masks."
            )
        else:
            advice = (
                "All rows of the step were left out, because their completions are equal or equally good. See "
                "pairs/dropped_ratio."
            )
        self.alarms.sound("nothing_supervised", step, f"no token was learned from. {advice}")


def local_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Norm of the gradients, or of this rank's share of them, ()."""
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
