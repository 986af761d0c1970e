"""Rows that do not fit: checkpointing comes by itself where it was left open, and else a run ends with what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from strop.errors import SetupError
from strop.methods.sft import SFTConfig
from strop.model.layer_check import layers_of
from strop.testing.cases import make_trainer, settings

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


def cramped(trainer: Any, *, fits_with_checkpointing: bool = True) -> Any:
    """A trainer whose device holds a pass with gradient only if layers are computed again."""

    def no_room(layer: Any, args: Any) -> None:
        fits = fits_with_checkpointing and layer.gradient_checkpointing
        if torch.is_grad_enabled() and layer.training and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    for layer in layers_of(trainer.policy):
        layer.register_forward_pre_hook(no_room)
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.policy.named_parameters()}


@pytest.mark.parametrize("verb", ["sft", "dpo"])
def test_checkpointing_comes_by_itself_and_changes_no_number(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_trainer(verb, tmp_path / "plain", max_steps=2)
    plain.train()
    trainer = cramped(make_trainer(verb, tmp_path / "cramped", max_steps=2, rehearsal=True))
    trainer.train()
    assert "layers are computed again" in capsys.readouterr().out
    assert trainer.args.gradient_checkpointing and trainer.args.activation_checkpointing
    own = weights(trainer)
    assert all(torch.equal(weight, own[name]) for name, weight in weights(plain).items())


def test_an_adapter_learns_as_it_did(tmp_path: Path) -> None:
    config = {"trainer": {"peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"])}}
    plain = make_trainer("sft", tmp_path / "plain", max_steps=2, **config)
    plain.train()
    trainer = cramped(make_trainer("sft", tmp_path / "cramped", max_steps=2, rehearsal=True, **config))
    trainer.train()
    own = weights(trainer)
    assert all(torch.equal(weight, own[name]) for name, weight in weights(plain).items())


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_what_was_set_is_kept(name: str, tmp_path: Path) -> None:
    trainer = cramped(make_trainer("sft", tmp_path, max_steps=2, rehearsal=True, **{name: False}))
    with pytest.raises(SetupError, match=r"do not fit .* per_device_train_batch_size=1 \(now 4\).*gradient_checkpoint"):
        trainer.train()
    assert not trainer.args.gradient_checkpointing


def test_what_helps_names_what_is_not_in_use(tmp_path: Path) -> None:
    options = {"rehearsal": True, "per_device_train_batch_size": 1, "max_steps": 2}
    trainer = cramped(make_trainer("sft", tmp_path, **options), fits_with_checkpointing=False)
    with pytest.raises(SetupError) as raised:
        trainer.train()
    said = str(raised.value)
    assert "activation_offloading=True" in said and "gradient_checkpointing" not in said
    assert "per_device_train_batch_size" not in said


def test_settings_say_whether_memory_may_decide(tmp_path: Path) -> None:
    assert settings("dpo", tmp_path).checkpointing_open
    assert not settings("dpo", tmp_path, gradient_checkpointing=False).checkpointing_open
    assert not settings("dpo", tmp_path, activation_checkpointing=True).checkpointing_open


def test_what_was_left_open_is_open_in_the_record_too(tmp_path: Path) -> None:
    """A run that is made of config.yaml decides as this one did."""
    said = {None: True, False: False, True: False}
    for value, is_open in said.items():
        given = {} if value is None else {"gradient_checkpointing": value}
        trainer = make_trainer("sft", tmp_path / str(value), max_steps=1, **given)
        trainer.train()
        record = yaml.safe_load((tmp_path / str(value) / "config.yaml").read_text())
        again = SFTConfig(**{name: record[name] for name in CHECKPOINTING}, output_dir=str(tmp_path), use_cpu=True)
        assert again.checkpointing_open == is_open and again.gradient_checkpointing == bool(value)
