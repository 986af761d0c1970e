"""The best checkpoint of an online method is the one with the greatest reward: a loss at ratio 1 says nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.errors import CheckpointError, ConfigError
from strop.rewards import RuleJudge
from strop.testing.cases import make_trainer, rows_for, settings
from strop.testing.rollouts import fix_rollouts

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
BEST = {**EVERY_STEP, "load_best_model_at_end": True, "max_steps": 3, "learning_rate": 0.1}


def peak_at_two(completions: Any, trainer_state: Any) -> list[float]:
    """In evaluations the second checkpoint is the best; completions of one prompt differ, so that there are pairs."""
    return [i / 100 - abs(trainer_state.global_step - 2) for i, _ in enumerate(completions)]


def online(verb: str, folder: Path, reward: Any = peak_at_two, **options: Any) -> Any:
    rows = [{"prompt": row["prompt"]} for row in rows_for(verb, 4)]
    made = make_trainer(
        verb, folder, rows=rows, eval_rows=rows[:2], trainer={"reward_funcs": reward}, **{**BEST, **options}
    )
    return fix_rollouts(made)


@pytest.mark.parametrize("verb", ["grpo", "rloo", "ppo", "online-dpo", "xpo-online", "nash-md"])
def test_the_best_checkpoint_is_the_one_with_the_greatest_reward(verb: str, tmp_path: Path) -> None:
    trainer = online(verb, tmp_path)
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("reward", True)
    weights: dict[int, dict[str, torch.Tensor]] = {}
    saved = trainer._save_checkpoint

    def remember(model: Any, trial: Any) -> None:
        saved(model, trial)
        weights[trainer.state.global_step] = {k: v.clone() for k, v in trainer.model.state_dict().items()}

    trainer._save_checkpoint = remember
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights[2].items())  # PPO's critic among them
    assert any(not torch.equal(found[name], value) for name, value in weights[3].items())


@pytest.mark.parametrize("verb", ["grpo", "ppo"])
def test_a_best_checkpoint_that_was_damaged_meanwhile_is_not_loaded(verb: str, tmp_path: Path) -> None:
    trainer = online(verb, tmp_path, load_best_model_at_end=False, max_steps=1)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    path = tmp_path / "checkpoint-1" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has other contents"):
        trainer._load_best_model()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_what_has_no_reward_goes_by_its_loss(tmp_path: Path) -> None:
    for verb in ("gkd", "xpo"):
        trainer = make_trainer(verb, tmp_path, eval_rows=rows_for(verb, 2), **BEST)
        assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("loss", False)


@pytest.mark.parametrize(
    ("verb", "metric"),
    [("online-dpo", "loss"), ("xpo-online", "objective/model_scores"), ("nash-md", "rewards/probabilities")],
)
def test_verdicts_of_a_judge_have_no_mean_to_go_by(verb: str, metric: str, tmp_path: Path) -> None:
    judge = RuleJudge(lambda prompt, first, second: int(len(first) > len(second)))
    trainer = online(verb, tmp_path, judge, max_steps=1)
    assert trainer.args.metric_for_best_model == metric
    trainer.train()
    assert f"eval_{metric}" in trainer.state.log_history[-2] | trainer.state.log_history[-3]


@pytest.mark.parametrize("verb", ["online-dpo", "xpo-online"])
def test_an_evaluation_without_a_pair_has_no_loss_but_a_name_for_it(verb: str, tmp_path: Path) -> None:
    trainer = online(verb, tmp_path, lambda completions: [1.0] * len(completions), metric_for_best_model="loss")
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_pairs/dropped_ratio" in line]
    assert len(evaluations) == 3 and all(math.isnan(line["eval_loss"]) for line in evaluations)
    assert trainer.state.best_model_checkpoint is None
    assert '"alarm": "no_pair"' in (Path(trainer.args.output_dir) / "alarms.jsonl").read_text()
    lines = (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("verb", ["online-dpo", "rloo"])
def test_one_completion_per_prompt_of_evaluation_compares_with_nothing(verb: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_generations_eval=1"):
        settings(verb, tmp_path, num_generations_eval=1)
