"""XPO is one class, open to subclasses: with a reward it samples its pairs, without one it learns from given pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strop.errors import ConfigError
from strop.methods.dpo import DPOTrainer
from strop.methods.xpo import XPOTrainer
from strop.testing.cases import letters_reward, make_trainer, rows_for, settings
from strop.testing.rollouts import fix_rollouts


class Watched(XPOTrainer):
    """A user's subclass: counts its losses."""

    losses = 0

    def loss(self, scores: Any, batch: Any, step: Any) -> Any:
        self.losses += 1
        return super().loss(scores, batch, step)


@pytest.mark.parametrize("case", ["xpo", "xpo-online"])
def test_a_subclass_trains_in_both_modes(case: str, tmp_path: Path) -> None:
    trainer = fix_rollouts(make_trainer(case, tmp_path, trainer_class=Watched, max_steps=2))
    trainer.train()
    assert type(trainer) is Watched and isinstance(trainer, XPOTrainer) and trainer.losses == 2
    assert trainer.args.mode == ("offline_exponential" if case == "xpo" else "online")


def test_without_a_reward_it_is_dpo_with_the_exponential_loss(tmp_path: Path) -> None:
    rows = rows_for("dpo", 8)
    options: dict[str, Any] = {"beta": 0.3, "learning_rate": 1e-2, "max_completion_length": None, "rows": rows}
    options |= {"eval_rows": rows[:3], "max_steps": 3}
    ours = make_trainer("xpo", tmp_path / "xpo", **options)
    theirs = make_trainer("dpo", tmp_path / "dpo", loss_type="exponential", **options)
    assert isinstance(theirs, DPOTrainer)
    for trainer in (ours, theirs):
        trainer.train()
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy", "logits/rejected")
    lines = [[{name: line[name] for name in names} for line in t.state.log_history[:3]] for t in (ours, theirs)]
    assert lines[0] == lines[1]
    assert ours.evaluate()["eval_loss"] == theirs.evaluate()["eval_loss"]


def made(folder: Path, *positional: Any, **keywords: Any) -> Any:
    given = make_trainer("sft", folder)
    return XPOTrainer(given.model, *positional, processing_class=given.processing_class, **keywords)


def test_one_config_serves_both_modes(tmp_path: Path) -> None:
    args = settings("xpo", tmp_path)
    online = made(tmp_path, args=args, train_dataset=[{"prompt": "a"}], reward_funcs=letters_reward)
    offline = made(tmp_path, args=args, train_dataset=rows_for("xpo", 2))
    assert (online.args.loss_type, offline.args.loss_type, args.loss_type) == ("sigmoid", "exponential", "auto")


def test_the_config_may_stand_third(tmp_path: Path) -> None:
    trainer = made(tmp_path, None, settings("xpo", tmp_path, beta=0.7), train_dataset=rows_for("xpo", 2))
    assert trainer.args.beta == 0.7 and trainer.offline


@pytest.mark.parametrize(
    ("case", "options", "trainer", "words"),
    [
        ("xpo", {"mode": "online"}, {}, "needs a reward"),
        ("xpo-online", {"mode": "offline_exponential"}, {}, "asks no reward; remove reward_funcs"),
        ("xpo", {"loss_type": "ipo"}, {}, "loss_type='ipo' on given pairs is a loss of DPOTrainer"),
        ("xpo-online", {"loss_type": "exponential"}, {}, "is for pairs that are given"),
        ("xpo", {"temperature": 0.5}, {}, "these settings have no effect: temperature"),
        ("xpo-online", {"precompute_ref_log_probs": True}, {}, "it samples its pairs"),
        ("xpo", {}, {"tools": [len]}, "samples nothing; remove tools"),
    ],
)
def test_what_a_mode_does_not_read_is_refused(
    case: str, options: dict[str, Any], trainer: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_trainer(case, tmp_path, trainer=trainer, **options)


@pytest.mark.parametrize("verb", ["online-dpo", "nash-md", "xpo-online"])
def test_beta_may_have_a_value_for_each_epoch(verb, tmp_path):
    trainer = make_trainer(verb, tmp_path, beta=[0.1, 0.05], max_steps=1)
    trainer.train()
    assert trainer.beta == 0.1
