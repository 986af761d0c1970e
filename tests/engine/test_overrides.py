"""A subclass that overrides what nothing calls is refused when it is made; what the parent calls is honoured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import strop
from strop.engine.overrides import CALLERS, HOOKS
from strop.engine.trainer import BaseTrainer
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ROWS = [{"prompt": "ab ", "chosen": "cd", "rejected": "e"}] * 4


def trainer_of(cls: Any, tmp_path: Path) -> Any:
    tokenizer = toy_tokenizer("plain")
    args = strop.DPOConfig(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    model = tiny_model("llama", vocab_size=len(tokenizer), dtype=torch.float32)
    return cls(model, args=args, train_dataset=ROWS, processing_class=tokenizer)


@pytest.mark.parametrize(
    "name", ["compute_loss", "prediction_step", "_generate_and_score_completions", "_get_dataloader"]
)
def test_an_override_that_nothing_calls_is_refused_when_the_class_is_made(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        type("Mine", (strop.GRPOTrainer,), {name: lambda self: None})
    assert "Mine" in str(error.value) and f"{name}: override {HOOKS[name]}" in str(error.value)


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_what_is_refused_is_called_nowhere(name: str) -> None:
    for method in METHODS:
        for cls in method.trainer().__mro__:
            assert name not in vars(cls) or not cls.__module__.startswith("strop."), f"{cls.__name__} has {name} itself"


def test_a_mixin_is_looked_at_too() -> None:
    class Mixin:
        def dpo_loss(self) -> None: ...

    with pytest.raises(ConfigError, match="dpo_loss: override loss"):
        type("Mine", (Mixin, strop.DPOTrainer), {})


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        type("Mine", (strop.DPOTrainer,), {"dpo_loss": None, "concatenated_forward": None, "get_batch_logps": None})
    assert all(name in str(error.value) for name in ("dpo_loss", "concatenated_forward", "get_batch_logps"))


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_loss"])
def test_a_function_put_on_the_trainer_is_refused(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(strop.DPOTrainer, tmp_path)
    with pytest.raises(ConfigError, match=name):
        setattr(trainer, name, lambda *args, **kwargs: None)


def test_create_optimizer_is_honoured(tmp_path: Path) -> None:
    class Mine(strop.DPOTrainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
            return self.optimizer

    trainer = trainer_of(Mine, tmp_path)
    trainer.train()
    assert type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)) is torch.optim.SGD


def test_the_hooks_that_are_named_exist() -> None:
    named: set[str] = {word.split("(")[0] for text in HOOKS.values() for word in text.split() if "(" in word}
    owners: list[Callable[..., Any]] = [BaseTrainer, strop.GRPOTrainer]
    missing = {name for name in named if not any(hasattr(owner, name) for owner in owners)}
    assert not missing


@pytest.mark.parametrize("owner", [strop.DPOTrainer, BaseTrainer, transformers.Trainer])
def test_a_method_put_on_the_class_later_is_refused_when_a_trainer_is_made(
    owner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assigned to the class itself, so that no subclass is made: ours, a parent of ours, or transformers' own."""
    monkeypatch.setattr(owner, "compute_loss", lambda *args, **kwargs: None)
    with pytest.raises(ConfigError, match="compute_loss: override loss"):
        trainer_of(strop.DPOTrainer, tmp_path)


@pytest.mark.parametrize(
    ("trainer", "name"),
    [("GRPO", "_compute_advantages"), ("NashMD", "_get_sequence_logps"), ("XPO", "_compute_rewards"),
     ("KTO", "forward"), ("DPO", "_precompute_ref_logps"), ("GRPO", "_generate_transformers"),
     ("ORPO", "store_metrics"), ("BCO", "match_underlying_distribution"), ("PRM", "tokenize_row")],
)  # fmt: skip
def test_methods_of_rarer_trainers_are_known_too(trainer: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: override "):
        type("Mine", (getattr(strop, f"{trainer}Trainer"),), {name: lambda self: None})


@pytest.mark.parametrize(
    ("trainer", "name"),
    [("SFT", "forward"), ("SFT", "store_metrics"), ("GRPO", "get_batch_logps"), ("Reward", "_generate"),
     ("DPO", "compute_rewards"), ("SFT", "tokenize_row"), ("PRM", "_log_metrics")],
)  # fmt: skip
def test_a_name_that_nothing_calls_for_the_method_is_free_for_a_helper(trainer: str, name: str) -> None:
    mine = type("Mine", (getattr(strop, f"{trainer}Trainer"),), {name: lambda self: "called"})
    assert getattr(object.__new__(mine), name)() == "called"


def test_what_an_override_calls_is_a_helper() -> None:
    class Mine(strop.GRPOTrainer):
        def score_groups(self, groups: Any, mode: str) -> Any:
            return [self.compute_rewards(group) for group in groups]

        def compute_rewards(self, group: Any) -> Any: ...

    with pytest.raises(ConfigError, match="compute_rewards: override ") as error:

        class Dead(strop.GRPOTrainer):
            def score_groups(self, groups: Any, mode: str) -> Any:
                return super().score_groups(groups, mode)

            def _generate_and_score_completions(self, inputs: Any) -> Any:
                return self.compute_rewards(inputs)

            def compute_rewards(self, group: Any) -> Any: ...

    assert "_generate_and_score_completions" in str(error.value)


def test_every_engine_is_a_trainer_here() -> None:
    assert CALLERS.keys() == HOOKS.keys()
    assert {prefix for prefixes in CALLERS.values() for prefix in prefixes} <= {method.prefix for method in METHODS}
