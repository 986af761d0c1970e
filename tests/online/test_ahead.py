"""Rounds that are sampled and rewarded while the policy learns: which weights wrote what, in which order, and what
becomes of it when something ends."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from tests.support.ahead_ranks import learned
from tests.support.processes import run_ranks
from transformers import TrainerCallback

from strop.errors import ConfigError, RewardError, RolloutError
from strop.online.lane import Lane
from strop.testing.cases import letters_reward, make_trainer, rows_for, settings
from strop.testing.rollouts import FixedGenerator

PATIENCE = 20  # seconds after which a test that waits for an event has failed


class Weighed(FixedGenerator):
    """An engine whose completions depend on the prompt and the weights that it was handed last.

    The first id of every completion says which of the versions that were handed over it is: 5, 6, ...
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(len(trainer.processing_class), trainer.processing_class.eos_token_id)
        self.trainer, self.loaded = trainer, (-1, 0.0)
        self.asked: list[tuple[int, int]] = []  # (optimizer steps that the weights had seen, prompts)

    def stage(self, model: Any) -> Any:
        sums = float(sum(p.detach().double().sum() for p in model.parameters()))
        taken = (self.trainer.state.global_step, sums)
        return lambda: setattr(self, "loaded", taken)

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, **kwargs: Any) -> Any:
        self.asked.append((self.loaded[0], len(prompts)))
        return super().generate(prompts, n, sampling, **kwargs)

    def _completion(self, key: str) -> tuple[list[int], str]:
        ids, reason = super()._completion(f"{key} {self.loaded[1]!r}")
        return [5 + self.loaded[0], *ids], reason


class Learned(TrainerCallback):
    """Notes the trees of every step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.steps = trainer, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(copy.deepcopy(self.trainer.step_work.examples))

    def versions(self) -> list[list[int]]:
        """Of every step: the versions that its completions say they are of; those that they carry are equal."""
        for trees in self.steps:
            for tree in trees:
                assert {ids[0] - 5 for ids in tree.completions} == {tree.sampled.version}
        return [sorted({tree.sampled.version for tree in trees}) for trees in self.steps]


def ahead(
    folder: Any,
    engine: Any = Weighed,
    reward: Any = letters_reward,
    prompts: int = 5,
    verb: str = "grpo",
    **options: Any,
) -> Any:
    """GRPO, or another method, on two prompts a step, an epoch of two steps and a half, with an engine that says which
    weights it had."""
    defaults = {
        "num_generations": 2, "per_device_train_batch_size": 4, "max_staleness": 1, "max_steps": 5, "beta": 0.1,
        "max_completion_length": 8,
    }  # fmt: skip
    rows = [{"prompt": row["prompt"]} for row in rows_for("grpo", prompts)]
    trainer = make_trainer(verb, folder, rows=rows, trainer={"reward_funcs": reward}, **defaults | options)
    trainer._generator = engine(trainer)
    trainer._sampler_compared = True
    trainer.learned = Learned(trainer)
    trainer.add_callback(trainer.learned)
    return trainer


def weights(trainer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("options", "versions"),
    [
        ({}, [[0], [0], [1], [2], [3]]),
        ({"max_staleness": 2}, [[0], [0], [0], [1], [2]]),
        ({"steps_per_generation": 2, "max_steps": 6, "prompts": 8}, [[0], [0], [0], [0], [2], [2]]),
        ({"max_staleness": 9}, [[0]] * 5),
        ({"verb": "rloo"}, [[0], [0], [1], [2], [3]]),
    ],
    ids=str,
)
def test_every_tree_carries_the_weights_that_wrote_it(options, versions, tmp_path):
    trainer = ahead(tmp_path, **options)
    trainer.train()
    assert trainer.learned.versions() == versions
    ages = [step - version for step, (version,) in enumerate(versions)]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["staleness/mean"] for line in logged] == ages == [line["staleness/max"] for line in logged]
    asked = trainer.generator.asked
    assert len(asked) == -(-len(versions) // options.get("steps_per_generation", 1)), "a round beyond the end"
    assert not trainer.ahead.rounds


class Counting(Weighed):
    """An engine that computes half of what it is given."""

    def generate(self, *given: Any, **kwargs: Any) -> Any:
        rollout = super().generate(*given, **kwargs)
        rollout.prefilled = rollout.prompt_tokens // 2
        return rollout


@pytest.mark.parametrize("windows", [0, 1])
def test_what_sampling_counts_is_logged_with_its_round(windows, tmp_path):
    trainer = ahead(tmp_path, Counting, max_staleness=windows)
    trainer.train()
    logged = [line["prefilled_tokens"] for line in trainer.state.log_history if "loss" in line]
    assert len(logged) == 5 and logged == pytest.approx([0.5] * 5, abs=0.1)


class Unweighed(Weighed):
    """Completions of the prompt alone, whatever the order."""

    _completion = FixedGenerator._completion


def test_the_rows_and_rewards_of_every_step_are_those_of_strict_order(tmp_path):
    """Across the ends of epochs, and with what is logged of rewards."""

    def counting(prompts: list[str], **kwargs: Any) -> list[float]:
        counted.append(tuple(prompts))
        return [float(len(p) + len(counted) % 3 * (i % 2)) for i, p in enumerate(prompts)]

    runs = []
    for windows in (0, 1, 2):
        counted: list[Any] = []
        options = {"vllm_importance_sampling_correction": False} if windows else {}
        trainer = ahead(tmp_path / str(windows), Unweighed, counting, max_staleness=windows, **options)
        assert (trainer.ahead is None) == (windows == 0)
        trainer.train()
        names = ("loss", "reward", "rewards/counting/mean", "num_tokens", "completions/mean_length", "epoch")
        lines = [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]
        runs.append((counted, lines, weights(trainer)))
    (asked, lines, end), *others = runs
    assert len(asked) == 5
    for other in others:
        assert other[0] == asked and other[1] == lines and same(other[2], end)


@pytest.mark.parametrize(("verb", "mode"), [("grpo", "token_truncate"), ("rloo", "sequence_truncate")])
def test_completions_of_older_weights_are_weighted(verb, mode, tmp_path):
    ends = []
    for corrects in (True, False):
        trainer = ahead(
            tmp_path / str(corrects), verb=verb, vllm_importance_sampling_correction=corrects, max_steps=2,
            learning_rate=0.1, vllm_importance_sampling_mode=mode if corrects else None,
        )  # fmt: skip
        trainer.train()
        assert trainer.state.log_history[0]["sampling/kl"] > 0
        ends.append(weights(trainer))
    assert not same(*ends)


class Near(Weighed):
    """An engine that says about what a policy says that knows nothing yet."""

    def generate(self, *given: Any, **kwargs: Any) -> Any:
        rollout = super().generate(*given, **kwargs)
        rollout.sampler_logps = [[[-5.5] * len(ids) for ids in group] for group in rollout.completions]
        return rollout


class ByHand(TrainerCallback):
    """Holds the gradient of every step against that of -w A log pi, completion by completion."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.gaps, self.weights = trainer, [], []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, work = self.trainer.model, self.trainer.step_work
        given = [p.grad.clone() for p in model.parameters()]
        loss = torch.zeros((), dtype=torch.float64)
        for tree in work.examples:
            for ids, said, advantage in zip(
                tree.completions, tree.sampled.sampler_logps, tree.sampled.advantages, strict=True
            ):
                logits = model(input_ids=torch.tensor([tree.prompt_ids + ids])).logits[0, len(tree.prompt_ids) - 1 : -1]
                logp = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
                self.weights.append(float((logp.detach() - sum(said)).exp()))
                loss = loss - self.weights[-1] * advantage * logp / work.counts["completions"]
        own = torch.autograd.grad(loss, list(model.parameters()))
        self.gaps.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(given, own, strict=True)))


def test_rloo_weighs_a_completion_by_all_of_its_tokens(tmp_path):
    trainer = ahead(
        tmp_path, Near, verb="rloo", beta=0.0, dtype=torch.float64, max_grad_norm=0.0, max_steps=3, learning_rate=0.05,
        vllm_importance_sampling_mode="sequence_truncate", vllm_importance_sampling_clip_max=None,
    )  # fmt: skip
    hand = ByHand(trainer)
    trainer.add_callback(hand)
    trainer.train()
    assert len(hand.gaps) == 3 and max(hand.gaps) < 1e-9
    assert max(abs(weight - 1) for weight in hand.weights) > 0.1


class Stepped(TrainerCallback):
    """Tells that the policy has learned."""

    def __init__(self) -> None:
        self.learned = threading.Event()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.learned.set()


@pytest.mark.parametrize("slow", ["rewards", "sampling"])
def test_the_policy_learns_while_the_next_window_is_made(slow, tmp_path):
    """What is slow in the second window ends only after the first has been learned from: in strict order, never."""
    stepped, calls = Stepped(), []

    def until_learned(kind: str) -> None:
        if kind == slow:
            calls.append(threading.current_thread().name)
            assert len(calls) != 2 or stepped.learned.wait(PATIENCE), "nothing was learned meanwhile"

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        until_learned("rewards")
        return letters_reward(completions)

    class Engine(Weighed):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            until_learned("sampling")
            return super().generate(*args, **kwargs)

    trainer = ahead(tmp_path, Engine, reward, reward_timeout=None, max_steps=3)
    trainer.add_callback(stepped)
    trainer.train()
    assert calls == [f"strop-{slow}"] * 3


def test_an_evaluation_waits_for_its_turn_and_sees_the_weights_of_now(tmp_path):
    names = []

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        names.append(threading.current_thread().name)
        return letters_reward(completions)

    trainer = ahead(tmp_path, Weighed, reward, max_steps=3)

    class Evaluate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                trainer.evaluate(eval_dataset=[{"prompt": "ant"}])

    trainer.add_callback(Evaluate())
    trainer.train()
    assert trainer.generator.asked == [(0, 2), (0, 2), (1, 1), (2, 1)]
    assert set(names) == {"strop-rewards"}
    assert trainer.learned.versions() == [[0], [0], [1]]


def test_a_run_that_is_gone_on_with_learns_from_what_was_sampled_ahead(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 5, "max_staleness": 2}
    whole = ahead(tmp_path / "run", **saving)
    whole.train()
    again = ahead(tmp_path / "run", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert same(weights(again), weights(whole))
    assert again.generator.asked == [(2, 2)], "windows 2 and 3 were in the checkpoint"
    assert again.learned.versions() == whole.learned.versions()[2:]
    names = ("loss", "reward", "rewards/letters_reward/mean", "staleness/mean")
    ends = [[[line[n] for n in names] for line in t.state.log_history if "loss" in line] for t in (whole, again)]
    assert ends[0] == ends[1]


def test_every_step_is_computed_with_the_same_threads_and_the_rest_with_all(tmp_path):
    """Also the steps of a run that is gone on with, before it samples for the first time: sums would be rounded
    otherwise."""

    class Threads(TrainerCallback):
        def __init__(self) -> None:
            self.counts: list[int] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.counts.append(torch.get_num_threads())

    saving = {"save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2, "max_steps": 4, "prompts": 8}
    counts, threads = Threads(), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for checkpoint in (None, str(tmp_path / "checkpoint-3")):
            trainer = ahead(tmp_path, **saving)
            trainer.add_callback(counts)
            trainer.train(resume_from_checkpoint=checkpoint)
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    assert counts.counts == [2] * 5


def test_an_engine_that_dies_and_a_reward_that_fails_end_the_run_by_name(tmp_path):
    class Dying(Weighed):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            if len(self.asked) == 2:
                raise RolloutError("the server died")
            return super().generate(*args, **kwargs)

    trainer = ahead(tmp_path / "engine", Dying, save_strategy="steps", save_steps=1)
    with pytest.raises(RolloutError, match="the server died"):
        trainer.train()
    assert trainer.state.global_step == 2 and not trainer.ahead.rounds
    resumed = ahead(tmp_path / "engine", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)  # the round that failed was in no checkpoint
    assert resumed.state.global_step == 5

    def failing(completions: list[str], **kwargs: Any) -> list[float]:
        if trainer.state.global_step:
            raise ValueError("no judge today")
        return letters_reward(completions)

    trainer = ahead(tmp_path / "reward", Weighed, failing, save_strategy="steps", save_steps=1)
    with pytest.raises(RewardError, match="no judge today"):
        trainer.train()


def test_a_run_that_is_stopped_forgets_what_it_had_begun(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    trainer, stop = ahead(tmp_path), Stop()
    trainer.add_callback(stop)
    trainer.train()
    assert trainer.state.global_step == 2 and not trainer.ahead.rounds
    trainer.remove_callback(stop)
    trainer.learned.steps.clear()
    trainer.train()
    assert trainer.learned.versions() == [[0], [0], [1], [2], [3]]


def test_rewards_are_not_asked_for_a_run_that_has_ended(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    class Held(Weighed):
        def generate(self, *given: Any, **kwargs: Any) -> Any:
            assert not self.asked or gate.wait(PATIENCE)
            return super().generate(*given, **kwargs)

    gate, asked = threading.Event(), []
    trainer = ahead(tmp_path, Held, lambda completions, **_: asked.append(1) or [0.0] * len(completions))
    trainer.add_callback(Stop())
    trainer.train()
    assert len(asked) == 1  # of the step that was made
    gate.set()
    for lane in (trainer.ahead.sampling, trainer.ahead.rewarding):
        assert lane.is_free(PATIENCE)
    assert len(trainer._generator.asked) == 2 and len(asked) == 1


def test_rounds_of_an_earlier_release_are_made_anew(tmp_path):
    trainer = ahead(tmp_path)
    trainer.ahead.load([{"number": 1, "version": 0, "groups": [{"completions": [[5]]}], "metrics": {}}])
    assert not trainer.ahead.rounds


def test_rows_in_an_order_of_ones_own_are_named(tmp_path):
    trainer = ahead(tmp_path)
    trainer.state.max_steps = 5
    with pytest.raises(RolloutError, match=r"Window 0 has the rows \[0\], and completions were sampled ahead for"):
        trainer.prepare_step([trainer.train_dataset[0]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "vllm"}, "vllm_mode='server'"),
        ({"ignore_data_skip": True}, "ignore_data_skip=True moves the rows"),
    ],
    ids=["colocated", "skip"],
)
def test_settings_that_need_strict_order_are_refused(options, said, tmp_path):
    with pytest.raises(ConfigError, match=f"max_staleness=1: .*{said}"):
        settings("grpo", tmp_path, max_staleness=1, **options)


def test_what_a_trainer_is_given_may_need_strict_order(tmp_path):
    class Stream:
        def __iter__(self) -> Any:
            return iter(rows_for("grpo"))

    with pytest.raises(ConfigError, match="the rows are a stream"):
        make_trainer("grpo", tmp_path, max_staleness=1, max_steps=1, rows=Stream())


def test_a_lane_keeps_the_order_and_goes_on_after_an_error():
    lane, gate, begun, seen = Lane("lane"), threading.Event(), threading.Event(), []
    first = lane(lambda: gate.wait(PATIENCE))
    failing = lane(lambda: 1 / 0)
    last = lane(lambda: seen.append("last"))
    gate.set()
    with pytest.raises(ZeroDivisionError):
        failing.result(PATIENCE)
    assert first.result() and last.result(PATIENCE) is None and seen == ["last"]
    gate.clear()
    held = lane(lambda: begun.set() or gate.wait(PATIENCE))
    dropped = lane(lambda: seen.append("dropped"))
    assert begun.wait(PATIENCE)
    lane.clear()
    gate.set()
    assert held.result(PATIENCE) and dropped.cancelled() and seen == ["last"]


def test_two_ranks_learn_what_one_learns(tmp_path):
    wholes = learned(str(tmp_path / "one"), prompts=2)
    for ranks in run_ranks(learned, 2, tmp_path / "ranks", str(tmp_path / "two"), 1, ("ppo", "gkd")):
        for case, alone in wholes.items():
            rank = ranks[case]
            torch.testing.assert_close(rank["weights"], alone["weights"], atol=1e-9, rtol=0, msg=case)
            for one, other in zip(alone["logs"], rank["logs"], strict=bool(rank["logs"])):
                if "staleness/mean" in one:
                    assert one["staleness/mean"] == min(one["step"] - 1, 1), case
                assert other == pytest.approx(one, rel=1e-6, abs=1e-9), case
            if "again" in rank:
                assert torch.equal(rank["again"], rank["whole"]), f"{case}, gone on with"
