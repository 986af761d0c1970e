"""What scripts do with a trainer beside training: an optimizer of their own, the model card, the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig

import strop
from strop.errors import ConfigError
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
