"""Whatever runs the model runs on all ranks: a model that is spread over them (ZeRO-3, FSDP) hangs otherwise."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.processes import run_ranks
from torch.nn.modules.module import register_module_forward_pre_hook

from strop.testing.cases import make_trainer, rows_for

PATIENCE = timedelta(seconds=20)
RUNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"precompute_ref_log_probs": True},
    "reward": {},
    "kto": {},
    "prm": {},
    "grpo": {"beta": 0.1, "num_generations": 2, "num_generations_eval": 2},
    "ppo": {},
    "gkd": {},
}


def meet(module: torch.nn.Module, inputs: Any) -> None:
    """Before the layers run: until every rank is here."""
    if type(module).__name__ == "LlamaModel":
        torch.distributed.monitored_barrier(timeout=PATIENCE)


def train_all(folder: str) -> list[str]:
    """Train, evaluate, write a checkpoint and the model, with ranks that meet at every forward pass; what each run
    calls its best checkpoint, and has loaded."""
    torch.distributed.init_process_group("gloo")
    hook = register_module_forward_pre_hook(meet)
    best = []
    try:
        for verb, options in RUNS.items():
            run = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
            run |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "ddp_backend": "gloo"}
            run |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
            place = Path(folder) / verb
            rows = {"rows": rows_for(verb, 4), "eval_rows": rows_for(verb, 4, seed=1)}
            trainer = make_trainer(verb, place, dtype=torch.float32, **rows, **run, **options)
            trainer.train()
            trainer.save_model(str(place / "saved"))
            best.append(trainer.state.best_model_checkpoint)
    finally:
        hook.remove()
    return best


def test_no_rank_runs_the_model_alone(tmp_path: Path) -> None:
    named = [str(tmp_path / verb / "checkpoint-1") for verb in RUNS]
    assert run_ranks(train_all, 2, tmp_path / "ranks", str(tmp_path)) == [named] * 2


def alone(folder: str) -> str:
    torch.distributed.init_process_group("gloo")
    hook = register_module_forward_pre_hook(meet)
    try:
        trainer = make_trainer("sft", folder, dtype=torch.float32, ddp_backend="gloo")
        if trainer.args.process_index == 0:
            with pytest.raises(RuntimeError, match=r"monitoredBarrier|Connection closed by peer"):
                trainer.layout  # noqa: B018
    finally:
        hook.remove()
    return "noticed"


def test_the_meeting_notices_a_rank_that_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_ranks(alone, 2, tmp_path / "ranks", str(tmp_path)) == ["noticed"] * 2
