"""The learning rate of adapters where nobody named one."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import strop
from strop.scripts.alias import Asked
from strop.testing.cases import make_trainer, settings


def config_of(verb: str, folder: Path) -> Any:
    return type(settings(verb, folder))


@pytest.mark.parametrize(
    ("verb", "given", "rate"),
    [("dpo", {}, 1e-5), ("sft", {}, 2e-4), ("reward", {}, 2e-4), ("dpo", {"learning_rate": 1e-6}, 1e-6)],
)
def test_an_adapter_has_a_rate_of_its_own_where_none_was_given(
    verb: str, given: dict[str, Any], rate: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config_of(verb, tmp_path)(output_dir=str(tmp_path), use_cpu=True, report_to=[], **given)
    adapter = LoraConfig(r=4, target_modules=["q_proj"])
    made = make_trainer(verb, tmp_path, trainer={"peft_config": adapter})
    trainer = type(made)(
        model=made.model, args=args, train_dataset=made.train_dataset, processing_class=made.processing_class
    )
    assert trainer.args.learning_rate == pytest.approx(rate)
    assert ("for an adapter" in capsys.readouterr().out) == (not given)


def test_a_script_for_trl_keeps_its_defaults(tmp_path: Path) -> None:
    config = Asked().recording(config_of("dpo", tmp_path))
    assert "learning_rate" in config(output_dir=str(tmp_path), use_cpu=True, report_to=[]).given


def rate_of(args: Any, folder: Path, *, adapter: bool = True) -> float:
    """The learning rate that a trainer made of these settings has."""
    extra = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])} if adapter else {}
    made = make_trainer("dpo", folder)
    trainer = type(made)(
        model=made.model, args=args, train_dataset=made.train_dataset, processing_class=made.processing_class, **extra
    )
    return float(trainer.args.learning_rate)


@pytest.mark.parametrize("rate", [5e-6, 1e-6])
def test_a_rate_written_later_was_named(rate: float, tmp_path: Path) -> None:
    args = strop.DPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    args.learning_rate = rate
    assert rate_of(args, tmp_path) == rate


def test_a_rate_in_a_dataclass_of_a_script_was_named(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Mine(strop.DPOConfig):
        note: str = "mine"

    assert rate_of(Mine(output_dir=str(tmp_path), use_cpu=True, report_to=[], learning_rate=5e-6), tmp_path) == 5e-6


def test_settings_that_serve_two_trainers_at_a_time(tmp_path: Path) -> None:
    args = strop.DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_steps=1,
        save_strategy="no",
        lr_scheduler_type="constant",
    )
    made = make_trainer("dpo", tmp_path)
    tokenizer, model, data = made.processing_class, made.model, made.train_dataset
    adapter = LoraConfig(r=4, target_modules=["q_proj"])
    full = strop.DPOTrainer(copy.deepcopy(model), args=args, train_dataset=data, processing_class=tokenizer)
    adapted = strop.DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=adapter)
    rates = [trainer.train() and trainer.optimizer.param_groups[0]["lr"] for trainer in (full, adapted, full)]
    assert rates == pytest.approx([1e-6, 1e-5, 1e-6])


def test_settings_that_serve_several_trainers(tmp_path: Path) -> None:
    args = strop.DPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    rates = [rate_of(args, tmp_path, adapter=adapter) for adapter in (True, True, False, True)]
    assert rates == pytest.approx([1e-5, 1e-5, 1e-6, 1e-5])
