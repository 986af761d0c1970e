"""What scripts do with a trainer beside training: an optimizer of their own, the model card, the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

import strop
from strop.errors import ConfigError
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

PAIRS = [{"prompt": "ab ", "chosen": "cd", "rejected": "e"}] * 4


def net() -> Any:
    return tiny_model("llama", vocab_size=len(toy_tokenizer("plain")), dtype=torch.float32)


def trainer_of(prefix: str, model: Any, tmp_path: Path, **kwargs: Any) -> Any:
    settings = {"max_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = getattr(strop, f"{prefix}Config")(output_dir=str(tmp_path), **settings)
    trainer_class = getattr(strop, f"{prefix}Trainer")
    return trainer_class(model, args=args, train_dataset=PAIRS, processing_class=toy_tokenizer("plain"), **kwargs)


@pytest.mark.parametrize(
    ("prefix", "extra"), [("DPO", {"peft_config": LoraConfig(r=2, target_modules="all-linear")}), ("Reward", {})]
)
def test_an_optimizer_over_weights_that_are_not_trained_is_refused(prefix: str, extra: Any, tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(ConfigError, match="holds none of the"):
        trainer_of(prefix, model, tmp_path, optimizers=(optimizer, None), **extra)


def test_an_optimizer_over_the_trained_weights_moves_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = net()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer_of("DPO", model, tmp_path, optimizers=(optimizer, None)).train()
    assert "will not move" not in capsys.readouterr().out
    assert not all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_an_optimizer_over_a_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = net()
    optimizer = torch.optim.SGD([model.lm_head.weight], lr=0.5)
    trainer_of("DPO", model, tmp_path, optimizers=(optimizer, None))
    assert "holds 1 of" in capsys.readouterr().out


def test_the_model_card_names_the_data_set(tmp_path: Path) -> None:
    trainer = trainer_of("DPO", net(), tmp_path)
    trainer.create_model_card("m", "some/data", tags=["x"])
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["datasets"] == ["some/data"] and front["tags"] == ["strop", "dpo", "x"] and "# m\n" in card


def test_the_reference_is_read_by_its_name_in_trl(tmp_path: Path) -> None:
    assert isinstance(trainer_of("DPO", net(), tmp_path).ref_model, torch.nn.Module)
    adapter = LoraConfig(r=2, target_modules="all-linear")
    assert trainer_of("DPO", net(), tmp_path, peft_config=adapter).ref_model is None
    assert trainer_of("Reward", net(), tmp_path).ref_model is None


def test_a_tokenizer_may_be_assigned_by_its_earlier_name(tmp_path: Path) -> None:
    class Mine(strop.DPOTrainer):
        def __init__(self, model: Any, tokenizer: Any, **kwargs: Any) -> None:
            self.tokenizer = tokenizer
            super().__init__(model, processing_class=tokenizer, **kwargs)

    args = strop.DPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    first, second = toy_tokenizer("plain"), toy_tokenizer("plain")
    trainer = Mine(net(), first, args=args, train_dataset=PAIRS)
    assert trainer.tokenizer is trainer.processing_class is first
    trainer.tokenizer = second
    assert trainer.tokenizer is trainer.processing_class is second


@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_a_schedule_of_another_optimizer_is_refused(whose: str, tmp_path: Path) -> None:
    """Its steps would move a rate that nothing is trained with."""
    model = net()
    elsewhere = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(elsewhere, lambda step: 0.0)
    own = torch.optim.SGD(model.parameters(), lr=0.5) if whose == "another's" else None
    with pytest.raises(ConfigError, match="the schedule moves the learning rate of its own optimizer"):
        trainer_of("DPO", model, tmp_path, optimizers=(own, schedule))
    trainer = trainer_of("DPO", model, tmp_path, optimizers=(elsewhere, schedule))
    assert trainer.lr_scheduler is schedule


def test_an_optimizer_assigned_later_is_looked_at_too(tmp_path: Path) -> None:
    trainer = trainer_of("DPO", net(), tmp_path)
    trainer.optimizer = torch.optim.SGD(net().parameters(), lr=0.5)
    with pytest.raises(ConfigError, match="holds none of the"):
        trainer.train()


def test_an_optimizer_that_steps_within_the_backward_pass_holds_none_of_the_weights(tmp_path: Path) -> None:
    trainer = trainer_of("DPO", net(), tmp_path)
    trainer.optimizer = trainer.accelerator.prepare(LayerWiseDummyOptimizer())  # as an earlier training leaves it
    trainer.ready_to_learn()


@pytest.mark.parametrize("resumed", [False, True])
def test_weights_unfrozen_after_the_trainer_was_made_do_not_move_the_reference(resumed: bool, tmp_path: Path) -> None:
    """The reference is the policy with its adapter off; what is trained beside the adapter stands in it as it was."""

    def run(**how: Any) -> tuple[list[float], Any]:
        adapter = LoraConfig(r=2, target_modules=["q_proj"])
        settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1, "logging_steps": 1}
        args = strop.DPOConfig(
            output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, lr_scheduler_type="constant",
            **settings,
        )  # fmt: skip
        trainer = strop.DPOTrainer(
            net(), args=args, train_dataset=PAIRS, processing_class=toy_tokenizer("plain"), peft_config=adapter
        )
        for name, weight in trainer.model.named_parameters():
            if "norm" in name:
                weight.requires_grad_(True)
        trainer.train(**how)
        with trainer.reference.active() as model, torch.no_grad():
            return model(torch.tensor([[5, 6, 7, 8]])).logits.flatten().tolist(), trainer

    if resumed:
        run()
    logits, trainer = run(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if resumed else None)
    moved = dict(trainer.model.named_parameters())["base_model.model.model.norm.weight"]
    assert not torch.equal(moved, net().model.norm.weight)
    assert logits == net()(torch.tensor([[5, 6, 7, 8]])).logits.flatten().tolist()


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_a_policy_that_is_frozen_is_refused(verb: str, tmp_path: Path) -> None:
    """Though PPO's value model has weights of its own that would move."""
    model = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer("plain")))
    trainer = make_trainer(verb, tmp_path, model=model.requires_grad_(False), max_steps=1)
    with pytest.raises(ConfigError, match="Every weight of the model is frozen"):
        trainer.train()
