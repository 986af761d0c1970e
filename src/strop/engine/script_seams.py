"""What scripts for TRL do with a trainer beside training: the reference, the model card, an optimizer of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from strop.engine.checkpoint import files_beside
from strop.engine.overrides import NoDeadOverrides
from strop.errors import ConfigError
from strop.model.headed import note_loading


class ScriptSeams(NoDeadOverrides):
    """Names of TRL's trainers that scripts use."""

    args: Any
    policy: Any
    reference: Any
    router_coef: float

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the load of a router's experts is balanced, by a term of the loss."""
        return self.router_coef > 0

    @property
    def ref_model(self) -> Any:
        """The reference as a module; None where it is the policy with its adapter off, or where there is none."""
        return getattr(self.reference, "model", None)

    def create_model_card(self, *args: Any, dataset_name: str | list[str] | None = None, **kwargs: Any) -> None:
        """The parent's model card, whole or as it was; `dataset_name` (in `push_to_hub` too) is what was trained on."""
        if dataset_name is not None:
            kwargs["dataset"] = dataset_name
        settings = self.args
        if len(args) < 4:  # the parent takes it from the folder's name
            kwargs.setdefault("model_name", Path(settings.output_dir).name)
        with files_beside(Path(settings.output_dir), "The model card") as beside:
            self.args = copy.copy(settings)
            self.args.output_dir = str(beside)
            try:
                super().create_model_card(*args, **kwargs)  # type: ignore[misc]
                if settings.should_save:
                    note_loading(self.policy, beside)
            finally:
                self.args = settings


def check_optimizer(optimizer: Any, model: torch.nn.Module, trainer: str, say: Callable[[str], None]) -> None:
    """Refuse an optimizer that holds none of the trained weights; say it where it holds a part of them.

    An adapter is put on, or layers are copied for another head, after a script has made its optimizer.
    """
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
