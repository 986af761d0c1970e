"""What scripts for TRL do with a trainer beside training: the reference, the model card, an optimizer of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from strop.data import DataReport
from strop.engine.overrides import NoDeadOverrides
from strop.engine.refusals import check_learns
from strop.engine.rows import RowPreparation
from strop.engine.sharding import is_sharded
from strop.engine.step_trainer import StepTrainer
from strop.errors import ConfigError
from strop.model.headed import note_loading
from strop.watch.about import about
from strop.watch.model_card import model_card, write_card


class ScriptSeams(NoDeadOverrides, StepTrainer):
    """Names of TRL's trainers that scripts use."""

    rows: RowPreparation

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the load of a router's experts is balanced, by a term of the loss."""
        return self.router_coef > 0

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, by its name of earlier releases."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        self.processing_class = given

    @property
    def ref_model(self) -> Any:
        """The reference as a module; None where it is the policy with its adapter off, or where there is none."""
        return getattr(self.reference, "model", None)

    def ready_to_learn(self) -> None:
        """What may have changed since the trainer was made: which weights are trained, and by which optimizer."""
        check_learns(self.model)
        check_learns(self.policy)  # beside it PPO trains a value model, which alone would change no answer
        sharded = self.is_deepspeed_enabled or is_sharded(self.accelerator)
        innermost = getattr(self.optimizer, "optimizer", self.optimizer)  # a layer-wise one holds none by design
        if self.optimizer is not None and not sharded and not isinstance(innermost, LayerWiseDummyOptimizer):
            check_optimizer(self.optimizer, None, self.model, type(self).__name__, lambda line: None)
        if hasattr(self.reference, "keep_start"):
            self.reference.keep_start()

    @property
    def reports(self) -> dict[str, DataReport]:
        return self.rows.reports

    def card(self, model_name: str | None = None, dataset_name: str | list[str] | None = None, **front: Any) -> str:
        """The model card of the run as it is now, with further fields of its front matter."""
        datasets = [dataset_name] if isinstance(dataset_name, str) else dataset_name or ()
        history = self.state.log_history
        facts = about(self.policy, self.reports)
        return model_card(facts, type(self), self.args, history, name=model_name or "", datasets=datasets, **front)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        *,
        dataset: str | list[str] | None = None,
        **front: Any,
    ) -> None:
        """Write the model card anew; `dataset_name` (in `push_to_hub` too) is what was trained on."""
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            write_card(folder, self.card(model_name, dataset_name or dataset, tags=tags, **front))
            note_loading(self.policy, folder)


def check_optimizer(
    optimizer: Any, schedule: Any, model: torch.nn.Module, trainer: str, say: Callable[[str], None]
) -> None:
    """Refuse an optimizer that holds none of the trained weights, and a schedule that moves the rate of another one;
    say it where the optimizer holds a part of the weights.

    An adapter is put on, or layers are copied for another head, after a script has made its optimizer.
    """
    if schedule is not None and getattr(schedule, "optimizer", optimizer) is not optimizer:
        other = "no optimizer is given with it" if optimizer is None else "another optimizer is given with it"
        raise ConfigError(
            f"optimizers: the schedule moves the learning rate of its own optimizer, and {other}: the rate that trains "
            "would stand still. Pass optimizers=(schedule.optimizer, schedule), or set lr_scheduler_type, warmup_steps."
        )
    if optimizer is None:
        return
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    moved = [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) in held]
    if not moved and trained:
        raise ConfigError(
            f"The optimizer holds none of the {len(trained)} weights that {trainer} trains "
            f"({trained[0]} ...): they were made after it, with the adapter or the head. Put those on first and make "
            "the optimizer from that model; or pass optimizer_cls_and_kwargs=(class, settings), or set optim."
        )
    if len(moved) < len(trained):
        left = next(name for name in trained if name not in set(moved))
        say(f"The optimizer holds {len(moved)} of {len(trained)} trained weights; {left} ... will not move.")
