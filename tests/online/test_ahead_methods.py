"""Every method whose rounds may be made ahead: versions, strict order where samples do not depend on it, resumes,
judges and reward models, and what is refused."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from tests.online.test_ahead import Unweighed, same, weights
from tests.support.stale import UNCORRECTED, Beside, stale

from strop.errors import ConfigError
from strop.online.ahead import Round
from strop.rewards import RuleJudge
from strop.testing.cases import letters_reward, make_trainer, settings
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


def losses(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def lines(trainer: Any) -> list[dict[str, float]]:
    """What was logged at each step, without times and what is said of sampling ahead alone."""
    timed = ("_time", "memory_peak", "eps", "_runtime", "_per_second", "total_flos")
    return [
        {name: value for name, value in line.items() if not name.endswith(timed) and not name.startswith("staleness/")}
        for line in losses(trainer)
    ]


@pytest.mark.parametrize("name", ["ppo twice", "online-dpo", "xpo", "gkd"])
def test_every_tree_carries_the_weights_that_wrote_it(name, tmp_path):
    trainer = stale(tmp_path, name, save_strategy="no")
    trainer.train()
    uses = trainer.sizes.steps
    begun = [max(step // uses - 1, 0) * uses for step in range(trainer.state.max_steps)]
    assert trainer.learned.versions() == [[version] for version in begun]
    ages = [step - version for step, version in enumerate(begun)]
    for what in ("mean", "max"):
        assert [line[f"staleness/{what}"] for line in losses(trainer)] == ages
    shown = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    told = [row.get("weights_of_step") for row in shown]
    assert set(told) == ({*begun, None} if name == "xpo" else set(begun))
    if name == "xpo":
        assert set(told[1::2]) == {None} and None not in told[::2], "the reference's completions have no version"


@pytest.mark.parametrize(
    ("name", "windows"), [("ppo twice", 1), ("online-dpo", 2), ("xpo", 1), ("gkd half", 2), ("gkd teacher", 2)]
)
def test_a_run_is_that_of_strict_order_where_samples_do_not_depend_on_it(name, windows, tmp_path):
    uncorrected = UNCORRECTED if name.startswith("ppo") else {}
    strict = stale(tmp_path / "strict", name, Unweighed, max_staleness=0)
    ahead = stale(tmp_path / "ahead", name, Unweighed, max_staleness=windows, **uncorrected)
    strict.train()
    ahead.train()
    assert strict.ahead is None and ahead.ahead is not None and not ahead.ahead.rounds
    assert lines(ahead) == lines(strict) and same(weights(ahead), weights(strict))


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_weights_that_do_not_move_make_it_strict_order(name, tmp_path):
    """With the sampler's own log-probs, and weighted by them: every weight is 1."""
    runs = [stale(tmp_path / str(n), name, Beside, max_staleness=n, learning_rate=0.0, max_steps=3) for n in (0, 1)]
    for trainer in runs:
        trainer.train()
    for strict, ahead in zip(*map(lines, runs), strict=True):
        assert ahead == pytest.approx(strict, rel=1e-9, abs=1e-12)
    assert losses(runs[1])[-1]["staleness/mean"] == 1


@pytest.mark.parametrize(("name", "at"), [("ppo twice", 3), ("xpo", 2), ("gkd half", 2), ("gkd teacher", 2)])
def test_a_run_that_is_gone_on_with_is_the_same_run(name, at, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "max_staleness": 2}
    whole = stale(tmp_path / "run", name, **saving)
    whole.train()
    again = stale(tmp_path / "run", name, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{at}"))
    assert same(weights(again), weights(whole))
    ends = [[lines(trainer), losses(trainer)[-1].get("staleness/max")] for trainer in (again, whole)]
    assert ends[0] == ends[1]
    if not name.startswith("gkd"):
        assert again.learned.versions() == whole.learned.versions()[at:]


def test_a_judge_of_pairs_is_asked_of_pairs_in_the_order_of_rounds(tmp_path):
    runs = []
    for windows in (0, 1):
        seen, threads = [], set()

        def rule(prompt: str, first: str, second: str, seen: Any = seen, threads: Any = threads) -> int:
            seen.append((prompt, first, second))
            threads.add(threading.current_thread())
            better, worse = letters_reward([first, second])
            return int(better < worse)

        given = {"reward_funcs": RuleJudge(rule)}
        trainer = stale(tmp_path / str(windows), "xpo", Unweighed, max_staleness=windows, trainer=given)
        trainer.train()
        trainer.evaluate(eval_dataset=[{"prompt": "ant"}])
        runs.append((lines(trainer), seen, weights(trainer)))
        assert len(seen) > 5 and {thread.name for thread in threads} == {"strop-rewards" if windows else "MainThread"}
    assert runs[0][:2] == runs[1][:2] and same(runs[0][2], runs[1][2])


def test_a_reward_model_is_asked_ahead(tmp_path):
    runs = []
    for windows in (0, 1):
        scorer = tiny_model("llama", task="score", seed=2, vocab_size=len(toy_tokenizer("plain")))
        own = UNCORRECTED if windows else {}
        given = {"reward_funcs": scorer}
        trainer = stale(tmp_path / str(windows), "ppo", Unweighed, max_staleness=windows, trainer=given, **own)
        trainer.train()
        runs.append((lines(trainer), weights(trainer)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def test_rounds_on_given_completions_sample_nothing(tmp_path):
    """Which rounds these are goes by their own numbers, whatever round is learned from when they are begun."""
    trainer = stale(tmp_path, "gkd half", max_steps=8, max_staleness=2)
    trainer.train()
    own = [trainer.on_policy(moment) for moment in range(8)]
    assert {True, False} == set(own) and len(trainer.generator.asked) == sum(own)
    logged = [line["on_policy_fraction"] for line in losses(trainer)]
    assert logged == [float(student) for student in own]
    for student, trees in zip(own, trainer.learned.steps, strict=True):
        assert all((tree.sampled is not None) == student for tree in trees)
    assert ["staleness/mean" in line for line in losses(trainer)] == own


def test_a_teachers_samples_are_of_no_version_of_the_student(tmp_path):
    trainer = stale(tmp_path, "gkd teacher", max_steps=8)
    trainer.train()
    for moment, trees in enumerate(trainer.learned.steps):
        assert all((tree.sampled.version is not None) == trainer.on_policy(moment) for tree in trees)
    assert trainer._teacher_generator.asked, "the teacher said nothing"


def test_nothing_is_compared_where_a_rank_had_no_prompts(tmp_path):
    trainer = stale(tmp_path, "ppo")
    trainer._sampler_compared = False
    done: tuple[Future[Any], Future[Any]] = Future(), Future()
    done[0].set_result([])
    done[1].set_result({})
    assert trainer.ahead.finished(Round(0, 0, [], *done)) == [] and not trainer._sampler_compared


def test_nash_md_says_why_its_opponent_is_not_made_ahead(tmp_path):
    with pytest.raises(ConfigError, match=r"max_staleness=1 has no effect here. The opponent is mixed from the policy"):
        settings("nash-md", tmp_path, max_staleness=1)
    assert settings("nash-md", tmp_path, max_staleness=0).overlap == ""


def test_a_reference_that_moves_is_not_sampled_from_ahead(tmp_path):
    with pytest.raises(ConfigError, match="max_staleness=1: sync_ref_model=True moves the reference"):
        settings("xpo-online", tmp_path, max_staleness=1, sync_ref_model=True)
    assert settings("online-dpo", tmp_path, max_staleness=1, sync_ref_model=True).overlap == "max_staleness=1"


def test_given_pairs_are_not_sampled_ahead(tmp_path):
    with pytest.raises(ConfigError, match="these settings have no effect: max_staleness"):
        make_trainer("xpo", tmp_path, max_staleness=1)
