"""Tasks of `verifiers` are played, scored and learned from: answered once, and in conversations."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from tests.support.conversations import trained

from strop.agents import VerifiersTasks
from strop.errors import ConfigError

vf = pytest.importorskip("verifiers.v1", reason="pip install 'strop[verifiers]'")


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, trace):
        return float(trace.last_reply == self.data.answer)

    @vf.reward
    async def brief(self, task, trace):
        assert task is self.data
        return float(len(trace.last_reply) == 1)


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for number in range(2):
            yield SumTask(SumData(prompt=f"{number}+1", system_prompt="Add.", answer=str(number + 1)), self.config.task)


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class Guess(vf.Env[GuessConfig]):
    """Three tries to find the answer."""

    async def run(self, task, agents):
        async with agents.player.interaction(task) as talk:
            segment, tries = await talk.turn(), 1
            while not segment.terminated and segment.last_reply != task.data.answer and tries < 3:
                segment, tries = await talk.turn("No."), tries + 1
        talk.trace.record_reward("tries", -tries, 0.5)

    async def finalize(self, task, episode):
        (trace,) = episode.traces
        trace.record_reward("played", 10.0)


@pytest.fixture
def guess(monkeypatch):
    module = ModuleType("strop_sums")
    module.Sums, module.__all__ = Sums, ["Sums"]
    monkeypatch.setitem(sys.modules, "strop_sums", module)
    return lambda **agent: Guess(GuessConfig(taskset={"id": "strop_sums"}, player=agent))


def environment_of(tasks):
    """One environment, called as its slot calls it."""
    import asyncio

    loop, environment = asyncio.new_event_loop(), tasks.environment()
    call = lambda name: lambda *a, **k: loop.run_until_complete(getattr(environment, name)(*a, **k))  # noqa: E731
    names = ("reset", "step", "get_reward", "close")
    return SimpleNamespace(seat=lambda: environment.seat, **{name: call(name) for name in names})


def test_a_taskset_is_learned_from(tmp_path):
    tasks = VerifiersTasks(Sums(vf.TasksetConfig()))
    assert tasks.rows[1]["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"}]
    say = lambda context, place: "12"[place % 2]  # noqa: E731
    trainer = trained(tmp_path, say, tasks.rows, environment_factory=tasks.environment)
    assert trainer.state.log_history[0]["reward"] == 2.0  # brief always, right in one of two
    assert all("Add." in trainer.processing_class.decode(ids) for ids in trainer._generator.seen[0])


def test_a_conversation_is_learned_from(guess, tmp_path):
    tasks = VerifiersTasks(guess())
    say = lambda context, place: "12"[place % 2] if "No." not in context else "no idea"  # noqa: E731
    trainer = trained(tmp_path, say, tasks.rows, environment_factory=tasks.environment)
    log = trainer.state.log_history[0]
    assert log["turns/mean_count"] == 2.0  # one try where the first is right, else three
    assert log["reward"] == ((2 + 1 - 0.5 + 10) + (0 + 0 - 1.5 + 10)) / 2 and log["turns/failed"] == 0.0


def test_thoughts_are_no_part_of_an_answer(guess):
    played = environment_of(VerifiersTasks(guess()))
    assert played.reset(task=0) is None
    assert played.step("<think>one and nothing</think>\n2") == ("No.", False)
    assert played.step("of course</think>1") == (None, True) and played.get_reward() == 12.0
    answers = played.seat().trace.assistant_messages
    assert [answer.reasoning_content for answer in answers] == ["one and nothing", "of course"]


def test_what_is_cut_ends_on_the_other_side_too(guess):
    played = environment_of(VerifiersTasks(guess()))
    played.reset(task=1)
    assert played.step("3") == ("No.", False)
    assert played.get_reward() == 1 - 0.5 * 2 + 10 and played.seat().trace.num_turns == 1
    played.reset(task=1)
    assert played.seat().trace.num_turns == 0
    played.close()
    played = environment_of(VerifiersTasks(guess(max_turns=1)))
    played.reset(task=1)
    assert played.step("3") == (None, True)


def test_what_fails_is_told_once(guess):
    tasks = VerifiersTasks(guess())

    async def run(task, agents):
        async with agents.player.interaction(task) as talk:
            await talk.turn()
            raise OSError("the game is gone")

    tasks.env.run = run
    played = environment_of(tasks)
    played.reset(task=0)
    with pytest.raises(OSError, match="the game is gone"):
        played.step("1")
    assert played.get_reward() is None


def test_what_needs_a_machine_is_refused_by_name():
    class Runs(SumTask):
        NEEDS_CONTAINER = True

        async def setup(self, trace, runtime):
            raise AssertionError

        @vf.reward
        async def files(self, trace, runtime):
            raise AssertionError

    class Files(Sums):
        def load(self):
            yield Runs(SumData(prompt="?", answer="!"))

    with pytest.raises(ConfigError) as refused:
        VerifiersTasks(Files(vf.TasksetConfig()))
    for text in ("setup prepare a machine", "runs in a container", "files looks into a machine"):
        assert text in str(refused.value)

    class Endless(Sums):
        INFINITE = True

    with pytest.raises(ConfigError, match="limit="):
        VerifiersTasks(Endless(vf.TasksetConfig()))
    assert len(VerifiersTasks(Endless(vf.TasksetConfig()), limit=1).rows) == 1


def test_several_agents_are_refused(guess, monkeypatch):
    from strop.agents import verifiers_tasks

    monkeypatch.setattr(verifiers_tasks, "_agents", lambda env: {"player": None, "judge": None})
    with pytest.raises(ConfigError, match="2 agents, player, judge; one is learned here"):
        VerifiersTasks(guess())
