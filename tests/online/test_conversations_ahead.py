"""Tools, environments, agents and rollout functions in rounds that are held while the policy learns."""

from __future__ import annotations

import copy
import re
import threading
from typing import Any

import pytest
import torch
from tests.support.talk_ahead import ACTORS, ROWS, Game, Speaks, Still, rewarded, samples, talking
from transformers import TrainerCallback

from strop.errors import RewardError, RolloutError
from strop.online import ahead as rounds
from strop.rollout.native import NativeGenerator

PATIENCE = 20  # seconds after which a test that waits for an event has failed
FREE = {"vllm_importance_sampling_correction": False}


@pytest.mark.parametrize(
    ("actor", "windows", "versions"),
    [*((actor, 1, [0, 0, 1, 2]) for actor in ACTORS), ("environment", 2, [0, 0, 0, 1])],
)
def test_all_turns_of_a_conversation_are_of_the_version_that_its_tokens_carry(actor, windows, versions, tmp_path):
    trainer = talking(tmp_path, actor, max_staleness=windows, learning_rate=0.1)
    trainer.train()
    assert [{tree.sampled.version for tree in step} for step in trainer.noted.steps] == [{v} for v in versions]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["staleness/max"] for line in logged] == [step - v for step, v in enumerate(versions)]
    for trees, version in zip(trainer.noted.steps, versions, strict=True):
        for tree in trees:
            for index, ids in enumerate(tree.completions):
                wrote = [i for i, on in zip(ids, tree.mask(index), strict=True) if on]
                assert set(re.findall(r"v\d+", trainer.processing_class.decode(wrote))) == {f"v{version}"}
    for row in samples(tmp_path):
        said = [turn["content"] for turn in row.get("turns", []) if turn["role"] == "assistant"]
        assert set(re.findall(r"v\d+", f"{said} {row['completion']}")) == {f"v{row['weights_of_step']}"}
    assert not trainer.ahead.rounds


def beside(trainer: Any) -> Still:
    """The native engine on a copy of the policy as it is now."""
    tokenizer = trainer.processing_class
    return Still(NativeGenerator(copy.deepcopy(trainer.policy), tokenizer), tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("actor", "kind", "options"),
    [
        ("environment", "opened", {"advantage_level": "turn"}),  # forks
        ("environment", "gathered", {"verb": "rloo"}),
        ("agent", "gathered", {}),
        ("function", "gathered", {}),
    ],
)  # fmt: skip
def test_where_weights_do_not_move_it_is_the_run_in_strict_order(actor, kind, options, tmp_path):
    """Completions, log-probs of the sampler, rewards, gradients, and what is logged: to the last bit."""
    runs = []
    for windows in (0, 2):
        trainer = talking(
            tmp_path / str(windows), actor, kind, beside,
            max_staleness=windows, learning_rate=0.0, max_steps=3, max_completion_length=40,
            **options, **FREE if windows else {},
        )  # fmt: skip
        trainer.train()
        trees = [[told_of(t) for t in step] for step in trainer.noted.steps]
        names = ("reward", "turns/mean_count", "turns/forked", "completions/mean_length", "num_tokens", "grad_norm")
        lines = [[line.get(name) for name in names] for line in trainer.state.log_history if "loss" in line]
        runs.append((trees, trainer.noted.gradients, lines))
    (trees, gradients, lines), *others = runs
    assert any(t[-1] for step in trees for t in step) == (kind == "opened" or actor == "agent")
    assert any(bool(g.any()) for step in gradients for g in step)
    for other in others:
        assert other[0] == trees and other[2] == lines
        for step, same in zip(gradients, other[1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(step, same, strict=True))


def told_of(tree: Any) -> tuple[Any, ...]:
    """What a tree is learned from, without the version that wrote it."""
    known = tree.sampled
    own = (known.sampler_logps, known.advantages, known.token_advantages, known.follows)
    return (tree.row, tree.prompt_ids, tree.completions, tree.loss_mask, *own)


def test_the_correction_is_that_of_the_models_own_tokens(tmp_path):
    """w = min(prod over a trajectory's own tokens of pi / pi_sampler, 3), of forks too; answers have no part in it."""
    trainer = talking(
        tmp_path, "environment", "opened", beside, verb="rloo",
        max_steps=3, learning_rate=3e-3, optim="sgd", max_grad_norm=0.0, max_completion_length=60,
        vllm_importance_sampling_mode="sequence_truncate", rows=[{"prompt": [{"role": "user", "content": "go"}]}] * 5,
        per_device_train_batch_size=2,
    )  # fmt: skip
    weights = []

    class ByHand(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            given = [p.grad.clone() for p in trainer.model.parameters()]
            work, terms = trainer.step_work, {}
            for tree in work.examples:
                scores = trainer.score(trainer.model, trainer.build([tree]), log=False)
                for index, number in enumerate(tree.sampled.of):
                    wrote = zip(tree.sampled.sampler_logps[index], tree.mask(index), strict=True)
                    own = terms.setdefault(number, [0.0, 0.0, tree.sampled.advantages[index]])
                    own[0] = own[0] + scores.logps[scores.segment == index].sum()
                    own[1] += sum(logp for logp, on in wrote if on)
            loss = torch.zeros((), dtype=torch.float64)
            for logp, said, advantage in terms.values():
                weights.append(float((logp.detach() - said).exp()))
                loss = loss - min(weights[-1], 3.0) * advantage * logp / work.counts["completions"]
            wanted = torch.autograd.grad(loss, list(trainer.model.parameters()))
            for one, other in zip(given, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)

    trainer.add_callback(ByHand())
    trainer.train()
    assert len(weights) == 6 and max(abs(weight - 1) for weight in weights) > 1e-3


@pytest.mark.parametrize(
    ("actor", "kind", "options"),
    [
        ("tools", "gathered", {"advantage_level": "turn"}),
        ("environment", "opened", {"advantage_level": "turn"}),
        ("agent", "gathered", {}),
    ],
)  # fmt: skip
def test_a_run_that_is_gone_on_with_has_the_conversations_that_were_held_ahead(actor, kind, options, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 5, "max_staleness": 2, **options}
    whole = talking(tmp_path / "run", actor, kind, learning_rate=0.01, **saving)
    whole.train()
    rows = samples(tmp_path / "run")
    again = talking(tmp_path / "run", actor, kind, learning_rate=0.01, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert set(again.generator.asked) == {1}, "windows 1 and 2 were in the checkpoint"
    later = [row for row in rows if row["step"] >= 1]
    assert samples(tmp_path / "run")[-len(later) :] == later
    assert [[t.to_plain() for t in step] for step in again.noted.steps] == [
        [t.to_plain() for t in step] for step in whole.noted.steps[1:]
    ]
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rewards_see_the_environments_that_their_completions_had(tmp_path):
    """The next round has begun, and has been reset, before the rewards of this one look."""
    resets: list[Any] = []
    seen: list[list[int]] = []

    class Watched(Game):
        def reset(self, start: int = 0, **row: Any) -> str:
            self.start = start
            resets.append(start)
            return super().reset(start, **row)

    def reward(environments: list[Any], start: list[int], **columns: Any) -> list[float]:
        if len(seen) < 2 and not wait_for(lambda: len(resets) >= 4 * (len(seen) + 2)):
            seen.append(["the next round did not begin"])  # type: ignore[list-item]
        seen.append([environment.start for environment in environments])
        told.append(start)
        return [float(i) for i in range(len(start))]

    told: list[list[int]] = []
    trainer = talking(
        tmp_path, "environment", max_steps=3, max_staleness=2, rows=[{**ROWS[0], "start": i} for i in range(6)],
        trainer={"environment_factory": Watched, "reward_funcs": reward},
    )  # fmt: skip
    trainer.train()
    assert seen == told and [len(start) for start in told] == [4, 4, 4] and len(resets) == 12
    assert not trainer._environments._pool, "they are closed with the run"


def wait_for(holds: Any, seconds: float = PATIENCE) -> bool:
    """Whether something comes to hold."""
    tick = threading.Event()
    for _ in range(int(seconds * 100)):
        if holds():
            return True
        tick.wait(0.01)
    return False


def test_tools_have_one_thread_and_one_that_hangs_is_left_behind_with_it(tmp_path):
    threads, gate = [], threading.Event()

    def look_up(word: str) -> str:
        """Look up a word.

        Args:
            word: To be looked up.
        """
        threads.append(threading.current_thread())
        if len(threads) == 3:
            gate.wait(PATIENCE)
        return word

    trainer = talking(
        tmp_path, "tools", max_steps=2, tool_timeout=0.3, trainer={"tools": [look_up], "reward_funcs": rewarded}
    )
    trainer.train()
    gate.set()
    assert {thread.name for thread in threads} == {"strop-tools"} and len(threads) == 8
    assert threads[0] is threads[1] is threads[2] is not threads[3] and len(set(threads)) == 2
    told = [turn["content"] for row in samples(tmp_path) for turn in row["turns"] if turn["role"] == "tool"]
    assert [text for text in told if text.startswith("Error")] == ["Error: no answer within 0.3 seconds."]
    assert trainer.state.log_history[0]["tools/failure_frequency"] == 0.25


def test_what_learns_meanwhile_is_not_shown_to_a_rollout_function(tmp_path):
    seen: list[Any] = []

    def function(prompt_ids: list[list[int]], n: int, sampling: Any, trainer: Any) -> Any:
        seen.append((trainer.state.global_step, threading.current_thread().name, trainer.args.num_generations))
        if len(seen) == 3:
            return trainer.model(prompt_ids)
        return trainer.generator.generate(prompt_ids, n, sampling)

    class Prompts(Speaks):
        def generate(self, prompts: list[list[int]], n: int, sampling: Any, **options: Any) -> Any:
            rollout = super().generate(prompts, n, sampling, **options)
            for name in ("completions", "sampler_logps", "finish_reasons"):
                flat = [one for group in getattr(rollout, name) for one in group]
                setattr(rollout, name, [flat[i : i + n] for i in range(0, len(flat), n)])
            return rollout

    given = {"rollout_func": function, "reward_funcs": rewarded}
    trainer = talking(tmp_path, "function", engine=Prompts, trainer=given)
    with pytest.raises(
        RolloutError, match=r"rollout_func reads trainer\.model, which learns meanwhile \(max_staleness=1\)"
    ):
        trainer.train()
    assert seen[:3] == [(0, "strop-sampling", 2), (0, "strop-sampling", 2), (1, "strop-sampling", 2)]
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("actor", ["environment", "agent"])
def test_an_engine_that_dies_between_turns_ends_the_run_by_name(actor, tmp_path):
    class Dies(Speaks):
        def generate(self, *given: Any, **options: Any) -> Any:
            if len(self.asked) == 5:
                raise RolloutError("the server died")
            return super().generate(*given, **options)

    trainer = talking(tmp_path, actor, engine=Dies, save_strategy="steps", save_steps=1)
    with pytest.raises(RolloutError, match="the server died"):
        trainer.train()
    assert trainer.state.global_step == 2 and not trainer.ahead.rounds
    again = talking(tmp_path, actor, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


def test_an_environment_that_cannot_be_made_any_more_ends_the_run_by_name(tmp_path):
    made: list[Any] = []

    def factory() -> Game:
        made.append(1)
        if len(made) > 4:
            raise ConnectionError("nobody is there")
        return Game()

    trainer = talking(tmp_path, "environment", trainer={"environment_factory": factory, "reward_funcs": None})
    with pytest.raises(RolloutError, match="Another environment Game could not be made: ConnectionError: nobody is"):
        trainer.train()


def test_a_run_that_is_told_to_stop_does_not_wait_for_conversations_without_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounds, "STOPPING_SECONDS", 0.3)
    monkeypatch.setattr(rounds, "ENDING_SECONDS", 0.1)
    monkeypatch.setattr("strop.agents.environments.CLOSING_SECONDS", 0.1)
    gate = threading.Event()

    class Waits(Game):
        def step(self, text: str) -> tuple[str, float, bool]:
            if trainer.generator.loaded >= 1:
                gate.wait(PATIENCE)
            return super().step(text)

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                trainer.stop_signals.received = 15

    trainer = talking(
        tmp_path, "environment", save_strategy="no", trainer={"environment_factory": Waits}, tool_timeout=None
    )
    trainer.callback_handler.callbacks.insert(0, Stop())
    try:
        with pytest.raises(SystemExit) as end:
            trainer.train()
        assert trainer.ahead.sampling.is_free(PATIENCE) and trainer.ahead.rewarding.is_free(PATIENCE)
    finally:
        gate.set()
    assert end.value.code == 143 and trainer.state.global_step == 2
    assert "the completions of windows [2] are not finished: they are left out" in capsys.readouterr().out
    again = talking(tmp_path, "environment", save_strategy="no", tool_timeout=None)
    again.train(resume_from_checkpoint=True)
    assert [{t.sampled.version for t in step} for step in again.noted.steps] == [{2}, {2}]


def test_environments_that_are_made_when_a_run_has_ended_are_closed_too(tmp_path, monkeypatch):
    """A reward that fails ends the run while the next round, which nobody will wait for, makes its environments."""
    monkeypatch.setattr(rounds, "ENDING_SECONDS", 0.1)
    gate, making = threading.Event(), threading.Event()
    made: list[Any] = []
    closed: list[Any] = []

    class Slow(Game):
        def __init__(self) -> None:
            made.append(self)
            if len(made) == 6:  # the second set's second
                making.set()
                gate.wait(PATIENCE)

        def close(self) -> None:
            closed.append(self)

    def reward(**columns: Any) -> list[float]:
        assert making.wait(PATIENCE)
        raise ValueError("no more")

    trainer = talking(tmp_path, "environment", trainer={"environment_factory": Slow, "reward_funcs": reward})
    left = trainer.ahead.sampling
    try:
        with pytest.raises(RewardError, match="no more"):
            trainer.train()
    finally:
        gate.set()
    assert left.is_free(PATIENCE) and wait_for(lambda: len(closed) == len(made))
    assert {*map(id, closed)} == {*map(id, made)} and len(made) == 6
    assert not any(trainer._environments._pool.values())


class Paired(Speaks):
    """Says the same in a conversation, whichever other prompts are spoken to with it; the two of a prompt differ."""

    def stage(self, model: Any) -> Any:
        return lambda: None

    def turn(self, text: str, place: int) -> str:
        self.first = 0
        return super().turn(text, place % 2)


@pytest.mark.parametrize("actor", ["tools", "environment", "agent"])
def test_a_step_of_conversations_may_be_learned_from_in_parts(actor, tmp_path):
    kind, given = "opened" if actor == "environment" else "gathered", {"max_staleness": 0, "max_steps": 2}
    whole = talking(tmp_path / "whole", actor, kind, Paired, **given)
    parts = talking(tmp_path / "parts", actor, kind, Paired, stream_prompts=1, **given)
    for trainer in (whole, parts):
        trainer.train()
    assert [[t.completions for t in step] for step in parts.noted.steps] == [
        [t.completions for t in step] for step in whole.noted.steps
    ]
    assert any(bool(g.any()) for step in whole.noted.gradients for g in step)
    for one, other in zip(whole.noted.gradients, parts.noted.gradients, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("online-dpo", {"per_device_train_batch_size": 2, "beta": 0.1}),
        ("gkd", {"per_device_train_batch_size": 2, "num_generations": 1, "beta": 0.5, "lmbda": 1.0}),
        ("ppo", {"num_mini_batches": 1, "num_iterations": 1}),
    ],
)
def test_other_methods_converse_ahead_too_and_are_gone_on_with(verb, options, tmp_path, monkeypatch):
    reward = {} if verb == "gkd" else {"reward_funcs": rewarded}
    monkeypatch.setitem(ACTORS, "environment", {"environment_factory": Game, **reward})
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 5, "learning_rate": 0.01, **options}
    whole = talking(tmp_path, "environment", verb=verb, **saving)
    whole.train()
    assert [{tree.sampled.version for tree in step} for step in whole.noted.steps] == [{0}, {0}, {1}, {2}]
    again = talking(tmp_path, "environment", verb=verb, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert set(again.generator.asked) == {2}, "window 2 was in the checkpoint"
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
