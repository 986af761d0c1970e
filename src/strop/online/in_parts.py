"""One optimizer step whose gradient is added up while its later completions are still sampled or judged.

    g = (sum over parts of  grad of sum_i weight values_i) / max(count of the whole step, 1)

The count that divides is known only when the last part has come, so the sum is divided once, before it is clipped. The
parts come in the order of their prompts, whichever is finished first: the sum of floating-point numbers has an order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from strop.engine.adalora import adalora_config
from strop.engine.step import in_training, step_counts, zero_loss
from strop.errors import ConfigError
from strop.records import Example, StepWork

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer


def learn_in_parts(trainer: OnlineTrainer, model: torch.nn.Module, prompts: list[Example], per: str) -> torch.Tensor:
    """A step up to the optimizer, as `StepTrainer.training_step`; `per` is the count that divides all terms."""
    assert trainer.ahead is not None
    whole = StepWork([], log=trainer.logs_next_step or trainer.begins_window)
    trainer.step_work = whole
    in_training(model, trainer.optimizer)
    counts: Counter[str] = Counter()
    for groups in trainer.ahead.parts(prompts, trainer.args.stream_prompts):
        trees = trainer.learnable(groups, prompts)
        counts.update(step_counts(trainer, trees))
        if computed := trainer.rows_worth_computing(trees):
            add_gradients(trainer, model, StepWork(computed, dict.fromkeys(counts, 1.0), log=whole.log), whole)
    if not whole.parts:
        stand_in = trainer.with_stand_in(StepWork([], dict(counts)), trainer.train_dataset)
        add_gradients(trainer, model, stand_in, whole)
    trainer.rounds += 1
    whole.counts = dict(counts)
    divide(model, whole, max(counts[per], 1.0))
    trainer.guard(whole, model, trainer.state.global_step + 1, gradients=trainer.gradients)
    loss = torch.stack(whole.losses).sum()
    trainer.record(whole, loss)
    return loss


def add_gradients(trainer: OnlineTrainer, model: torch.nn.Module, work: StepWork, whole: StepWork) -> None:
    """Gradients of the sums of a part, and what is known of it, added to the step's."""
    longest = max(work.examples, key=lambda example: example.num_tokens)
    trainer.guard.alarms.before_step(trainer.state.global_step + 1, longest.row, longest.num_tokens)
    for micro in trainer.micro_batches(model, work, training=True):
        share = zero_loss(micro.scores) if micro.output is None else trainer.reduce(micro.output, micro)
        trainer.backward(share)
        work.losses.append(share.detach())
    whole.examples += work.examples
    whole.parts += work.parts
    whole.losses += work.losses
    whole.stand_in = work.stand_in


def divide(model: torch.nn.Module, whole: StepWork, count: float) -> None:
    """Divide the sums of a step, its gradients and losses, by its count."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    whole.losses = [loss / count for loss in whole.losses]


def check_can_learn_in_parts(trainer: OnlineTrainer) -> None:
    """Refuse what divides by more than one count, or exchanges gradients before the last part is there.

    Raises:
        ConfigError: all of it.
    """
    problems = []
    if trainer.args.world_size > 1:
        problems.append("several processes exchange gradients with their last part, and may have more or fewer.")
    if trainer.router_coef:
        problems.append("a router's balance is taken over the tokens of the step; set router_aux_loss_coef=0.")
    if adalora_config(trainer.policy):
        problems.append("AdaLoRA's term is shared out over the parts of a step.")
    if problems:
        raise ConfigError.collect(f"{trainer.args.overlap} cannot be used here:", problems)
