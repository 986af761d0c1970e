"""What a run says when it breaks or learns nothing: named, once, with what to do; no bad step reaches the weights."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from strop.engine.guard import Guard
from strop.errors import NonFiniteError
from strop.methods.dpo import DPOTrainer
from strop.methods.kto import KTOConfig
from strop.methods.sft import SFTConfig, SFTTrainer
from strop.records import LossOutput, StepWork, Term
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tokenizers import toy_tokenizer
from strop.watch.alarms import Alarms, found_in, without_pairs

BAD_ROW = 5


class Poisoned(SFTTrainer):
    """The loss of one row is not a number."""

    value = float("nan")

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        output = super().loss(scores, batch, step)
        bad = torch.tensor([example.row == BAD_ROW for example in batch.examples])[batch.tree_of[scores.segment]]
        factor = torch.ones_like(output.terms[0].values).masked_fill(bad, self.value)
        return LossOutput([Term(output.terms[0].values * factor, "tokens")], output.metrics)


def poisoned(folder: Path, **overrides: Any) -> Any:
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    return make_trainer("sft", folder, rows=rows_for("sft", 12), trainer_class=Poisoned, **{**settings, **overrides})


def alarms(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


def test_a_loss_that_is_not_a_number_stops_before_the_weights_change(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, train_sampling_strategy="sequential")
    with pytest.raises(
        NonFiniteError, match=r"Step 2: the loss is not finite, from rows .*5.*step 1.*on_nonfinite='skip'"
    ) as error:
        trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    batch = [json.loads(line) for line in (tmp_path / "nonfinite-step-2.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in batch) == [4, 5, 6, 7]
    named = {line["row"] for line in batch if line["micro_batch_loss"] == "nan"}
    assert BAD_ROW in named and len(named) == 2
    assert batch[0]["prompt"] and batch[0]["completions"][0] and "nonfinite-step-2.jsonl" in str(error.value)


def test_skipping_leaves_the_step_out_and_nothing_else(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, train_sampling_strategy="sequential", on_nonfinite="skip", weight_decay=0.1)
    seen = []

    class Weights(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    trainer.add_callback(Weights())
    seen.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    trainer.train()
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(seen)]
    assert moved == [True, False, True]
    assert [(line["step"], line["alarm"]) for line in alarms(tmp_path)] == [(2, "nonfinite")]


def test_a_gradient_that_is_not_finite_names_all_rows_of_the_step(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path)
    trainer.model.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    Poisoned.value = 1.0
    try:
        with pytest.raises(NonFiniteError, match=r"Step 1: the gradient is not finite, from rows .*, .*, .*, .*"):
            trainer.train()
    finally:
        Poisoned.value = float("nan")


def test_no_gradient_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("sft", tmp_path, rows=rows_for("sft", 8))
    trainer.model.lm_head.weight.data.zero_()
    for parameter in trainer.model.parameters():
        parameter.requires_grad_(parameter is trainer.model.model.layers[0].mlp.up_proj.weight)
    trainer.train()
    assert capsys.readouterr().out.count("Warning [zero_gradient] step 1: the gradient is exactly zero") == 1
    assert [line["step"] for line in alarms(tmp_path)] == [1, 2]


def test_nothing_left_to_learn_from_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("sft", tmp_path, rows=rows_for("sft", 4))
    plain = trainer.get_batch_samples

    def masked(*args: Any) -> Any:
        samples, count = plain(*args)
        for example in samples[-1]:
            example.loss_mask = [[0] * len(ids) for ids in example.completions]
        return samples, count

    trainer.get_batch_samples = masked
    trainer.train()
    assert "Warning [nothing_supervised] step 1: no token was learned from. Every completion" in capsys.readouterr().out


def test_rewards_that_never_differ_are_an_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flat(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)

    for verb, group in (("grpo", {"num_generations": 2}), ("online-dpo", {})):
        trainer = make_trainer(verb, tmp_path / verb, rows=rows_for(verb, 4), trainer={"reward_funcs": flat}, **group)
        trainer.train()
        out = capsys.readouterr().out
        assert (
            out.count("Warning [zero_variance_groups] step 1: all completions of every prompt got the same reward") == 1
        ), verb


@pytest.mark.parametrize(("verb", "group"), [("grpo", {"num_generations": 2}), ("online-dpo", {})])
def test_rewards_that_all_abstain_are_told_from_equal_ones(verb: str, group: dict[str, int], tmp_path: Path) -> None:
    def first(completions: list[str], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    def second(completions: list[str], **kwargs: Any) -> list[None]:
        return [None] * len(completions)

    rows = rows_for(verb, 4)
    make_trainer(verb, tmp_path, rows=rows, trainer={"reward_funcs": [first, second]}, **group).train()
    said = {line["alarm"]: line["text"] for line in alarms(tmp_path)}
    assert "zero_variance_groups" not in said
    assert said["abstained"].startswith("no completion got a reward: first, second returned None for every one")


def test_one_reward_that_abstains_beside_one_that_does_not_is_no_alarm() -> None:
    args = type("Args", (), {"kl_is_distance": True})
    logs = {"rewards/first/abstained_fraction": 1.0, "rewards/second/mean": 0.5, "rewards/second/std": 0.1}
    assert not list(found_in(logs, 2, args))
    skipped = {"rewards/first/errors_fraction": 1.0, "reward_std": 0.0}
    ((kind, text),) = found_in(skipped, 2, args)
    assert kind == "abstained" and "first failed on every one" in text


@pytest.mark.parametrize(
    ("logs", "kind"),
    [
        ({"completions/clipped_ratio": 1.0}, "all_truncated"),
        ({"clip_ratio/region_mean": 1.0}, "all_clipped"),
        ({"policy/clipfrac_avg": 1.0}, "all_clipped"),
        ({"kl": 1.5}, "kl"),
        ({"objective/kl": 200.0}, "kl"),
    ],
    ids=str,
)
def test_what_log_lines_tell(logs: dict[str, float], kind: str) -> None:
    args = type("Args", (), {"kl_is_distance": True, "max_completion_length": 8})
    assert [name for name, _ in found_in(logs, 2, args)] == [kind]
    harmless = {name: value * 0.5 for name, value in logs.items()}
    assert not list(found_in(harmless, 2, args))
    args.kl_is_distance = KTOConfig.kl_is_distance
    assert [name for name, _ in found_in(logs, 2, args)] == [kind] * (kind != "kl")


def test_groups_of_one_have_no_spread_by_nature() -> None:
    args = type("Args", (), {"kl_is_distance": True})
    assert not list(found_in({"frac_reward_zero_std": 1.0}, 1, args))


def test_a_healthy_run_raises_no_alarm(tmp_path: Path) -> None:
    trainer = make_trainer("dpo", tmp_path, rows=rows_for("dpo", 8), trainer_class=DPOTrainer)
    trainer.train()
    (alarm,) = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Alarms)]
    assert not alarm.raised and not (tmp_path / "alarms.jsonl").exists()


def test_a_row_that_a_cpu_works_on_for_minutes_is_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strop.watch.alarms.LONG_ROW", 20)
    rows = [{"text": "the ant"}, {"text": "the bee and the cat " * 3}]
    trainer = make_trainer("sft", tmp_path, rows=rows, per_device_train_batch_size=2, stop_grace=20.0)

    def scored(*args: Any, **kwargs: Any) -> None:
        said = capsys.readouterr().out
        assert "[long_row] step 1: row 1 has " in said and "waits 20 s for it" in said
        raise KeyboardInterrupt

    trainer.score = scored
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


@pytest.mark.parametrize("gradient", [1.0, float("nan")])
def test_a_scaler_leaves_a_step_out_that_the_guard_found(gradient: float, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    for weight in model.parameters():
        weight.grad.mul_(gradient)
    args = SFTConfig(output_dir=str(tmp_path), on_nonfinite="skip", use_cpu=True)
    work = StepWork([], {"tokens": 3.0})
    work.parts, work.losses = [[]], [torch.tensor(float("nan"))]
    Guard(args, Alarms(args), toy_tokenizer("plain"))(work, model, 1, gradients="scaled")
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_only_the_evaluation_without_a_pair_is_named() -> None:
    logs = {"eval_hard_pairs/dropped_ratio": 1.0, "eval_easy_pairs/dropped_ratio": 0.5, "eval_hard_loss": math.nan}
    ((kind, text),) = without_pairs(logs)
    assert kind == "no_pair" and "eval_hard_loss is not a number" in text and "easy" not in text
