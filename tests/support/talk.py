"""What two ranks tell each other in a step: by which collectives, and whether they find the other's rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from transformers import TrainerCallback

from strop.collectives import gather_numbers, gather_rows, gather_tensors, sum_over_ranks
from strop.online.groups import Group, groups_of_all_ranks
from strop.records import Example
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

OBJECTS = ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list")
RUNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "kto": {},
    "grpo": {"scale_rewards": "batch", "num_generations": 2, "top_entropy_quantile": 0.5},
    "ppo": {},
}


class Counted(TrainerCallback):
    """Counts collectives of objects while steps and log lines are made."""

    def __init__(self) -> None:
        self.objects: Counter[str] = Counter()
        self.counting = False
        for name in OBJECTS:
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.objects[name] += self.counting
            return function(*args, **kwargs)

        return call

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counting = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counting = False


def told(folder: str) -> dict[str, Any]:
    """What a rank of two finds out of both, and the collectives of objects in runs of all kinds of methods."""
    found: dict[str, Any] = {"objects": {}}
    for verb, options in RUNS.items():
        settings = {"per_device_train_batch_size": 2, "max_steps": 2, "ddp_backend": "gloo", "logging_steps": 1}
        rows = rows_for(verb, 8)
        trainer = fix_rollouts(make_trainer(verb, f"{folder}/{verb}", rows=rows, **settings | options))
        counted = Counted()
        trainer.add_callback(counted)
        trainer.train()
        found["objects"][verb] = dict(counted.objects)
    rank = torch.distributed.get_rank()
    here = {"tokens": 0.1, "rows": 3.0} if rank else {"rows": 2.0, "only here": 7.0}
    found["numbers"], found["sum"] = gather_numbers(here, 2), sum_over_ranks(here, 2)
    found["same"], found["none"] = gather_numbers({"a": float(rank)}, 2), gather_numbers({}, 2)
    cpu = torch.device("cpu")
    mine = {"flags": torch.tensor([True, False, True]), "wide": torch.full((2, 3), 0.1 + rank, dtype=torch.float64)}
    found["tensors"] = gather_tensors(mine if rank else {"wide": mine["wide"][:1]}, 2, cpu)
    parts = [{"u": torch.arange(2.0) + 10 * rank}, {}] if rank else [{}, {"u": torch.arange(3.0)}]
    rows = gather_rows(parts, 2, cpu)
    found["rows"] = rows.values["u"].tolist(), [rows.values["u"][rows.rows(i)].tolist() for i in (0, 1)]
    empty = gather_rows([{}] if rank else [{"u": torch.ones(1)}], 2, cpu)
    found["empty"] = empty.values["u"].tolist()
    turns = [[[1.0], [2.0, float(rank)]]] * (1 + rank)
    groups = [
        Group(Example([], []), [[1], [2]], [], [], values=torch.full((2, 1), float(rank)), rewards=torch.ones(2),
              turn_rewards=each)
        for each in turns
    ]  # fmt: skip
    everyone = groups_of_all_ranks(groups, 2, rank)
    found["own groups"] = [any(group is own for own in groups) for group in everyone]
    found["groups"] = [(len(g.completions), g.values.tolist(), g.turn_rewards) for g in everyone]  # type: ignore[union-attr]
    return found
