from __future__ import annotations

import asyncio
import logging
import sys
import threading
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
from tests.support.patience import with_patience

from strop.errors import ConfigError, DataError, RewardError, SetupError
from strop.records import Mean, PushedMean
from strop.rewards import RandomJudge, RewardSet
from strop.rewards.model_reward import ModelReward

NAN = float("nan")


@pytest.fixture(scope="module", autouse=True)
def by_value():
    """Functions of this file travel whole, so that a worker does not import torch with it."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]


def trouble(completions, **kwargs):
    """One number per completion, unless a completion asks for trouble."""
    import os

    values = []
    for text in completions:
        if text == "loop":
            while True:
                pass
        if text == "native":
            sum(range(10**13))
        if text == "exit":
            os._exit(1)
        if text == "raise":
            raise ValueError("cannot read this one")
        value = {"nan": float("nan"), "inf": float("inf"), "text": "high", "none": None}.get(text, float(len(text)))
        values.append(value)
    if "short" in completions:
        return values[:-1]
    if "scalar" in completions:
        return 1.0
    if "nothing" in completions:
        return None
    return values


async def slow(completions, **kwargs):
    import asyncio

    await asyncio.sleep(0.01)
    return [len(text) for text in completions]


def score(rewards, completions, **settings):
    with RewardSet(rewards, **settings) as made:
        return made.score(["p"] * len(completions), completions, [[1]] * len(completions))


def values(rewards, completions, **settings):
    return score(rewards, completions, **settings).values


# ---- the call


def test_several_rewards_in_one_call():
    def half(completions):
        return np.full(len(completions), 0.5)

    table = score([lengths, half, slow], ["a", "bb"], weights=[1.0, 2.0, 0.1])
    np.testing.assert_array_equal(table.values, [[1, 2], [0.5, 0.5], [1, 2]])
    assert table.names == ["lengths", "half", "slow"]
    np.testing.assert_allclose(table.total(), [2.1, 3.2], rtol=1e-12)
    assert table.values.dtype == np.float64 and table.failures == []


@pytest.mark.parametrize("isolate", [True, False])
def test_a_function_gets_only_what_it_names(isolate):
    def picky(completion_ids, answer, trainer_state):
        step = trainer_state.global_step
        return [len(ids) + (a == "yes") + step for ids, a in zip(completion_ids, answer, strict=True)]

    @dataclass
    class State:
        global_step: int = 100

    with RewardSet(picky, isolate=isolate) as rewards:
        table = rewards.score(
            ["p", "q"], ["a", "b"], [[1, 2], [3]], {"answer": ["yes", "no"], "other": [1, 2]}, trainer_state=State()
        )
    assert table.values.tolist() == [[103.0, 101.0]]


@pytest.mark.parametrize("isolate", [True, False])
def test_conversations_arrive_as_they_are(isolate):
    def spoken(prompts, completions):
        pairs = zip(prompts, completions, strict=True)
        return [float(len(p[-1]["content"]) * 10 + len(c[0]["content"])) for p, c in pairs]

    with RewardSet(spoken, isolate=isolate) as rewards:
        table = rewards.score([[{"role": "user", "content": "hi"}]], [[{"role": "assistant", "content": "abc"}]])
    assert table.values.tolist() == [[23.0]]


@pytest.mark.parametrize("isolate", [True, False])
def test_metrics_and_columns_are_collected(isolate):
    def first(completions, log_metric, log_extra):
        log_metric("share", 1.0)
        log_metric("share", 0.0)
        log_extra("note", completions)
        return [0.0 for _ in completions]

    def second(completions, log_extra):
        log_extra("note", ["other" for _ in completions])
        return [0.0 for _ in completions]

    table = score([first, second], ["a", "b"], isolate=isolate)
    assert table.metrics == {"share": PushedMean(1.0, 2.0)}
    assert table.extras == {"note": ["a", "b"], "second/note": ["other", "other"]}
    assert table.log_metrics()["share"] == PushedMean(1.0, 2.0)


def test_abstaining_is_no_failure():
    table = score(trouble, ["none", "abc"])
    np.testing.assert_array_equal(table.values, [[NAN, 3.0]])
    assert table.counts["trouble"].abstained == 1 and table.counts["trouble"].errors == 0
    np.testing.assert_array_equal(table.total(), [NAN, 3.0])


def test_an_empty_batch_is_scored():
    table = score([lengths, slow], [])
    assert table.values.shape == (2, 0) and table.total().shape == (0,)


def test_async_functions_of_this_process_run_together():
    meeting = threading.Barrier(1)
    arrived = []

    def maker(name):
        async def reward(completions):
            arrived.append(name)
            while len(arrived) < 3:
                await asyncio.sleep(0.005)
            meeting.wait()
            return [1.0 for _ in completions]

        return reward

    table = score([maker(i) for i in range(3)], ["a"], timeout_seconds=60.0)
    assert table.values.tolist() == [[1.0]] * 3


def test_a_reward_sees_and_keeps_the_state_of_the_script():
    notes, stage = [], {"bonus": 0.0}

    def reward(completions):
        notes.append(list(completions))
        return [stage["bonus"] for _ in completions]

    with RewardSet(reward) as rewards:
        assert rewards.score(["p"], ["a"]).values.tolist() == [[0.0]]
        stage["bonus"] = 2.0
        assert rewards.score(["p"], ["b"]).values.tolist() == [[2.0]]
        assert notes == [["a"], ["b"]]
        assert rewards.places == {"reward": "this process"}


def test_rewards_cannot_change_each_others_batch():
    def greedy(completions):
        completions.clear()
        return [0.0, 0.0]

    assert score([greedy, lengths], ["a", "bb"]).values.tolist() == [[0.0, 0.0], [1.0, 2.0]]


def test_a_model_a_judge_and_a_function_in_one_set(make_model, tokenizer):
    model = make_model("score")
    with RewardSet([model, RandomJudge(seed=1), lengths], processing_classes=[tokenizer, None, None]) as rewards:
        table = rewards.score(["p", "p"], ["a", "bb"])
    assert table.names == ["LlamaForSequenceClassification", "RandomJudge", "lengths"]
    assert table.values[0].tolist() == ModelReward(model, tokenizer)(["p", "p"], ["a", "bb"])
    assert sorted(table.values[1]) == [0.0, 1.0]
    assert table.values[2].tolist() == [1.0, 2.0]


# ---- failures: raise


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("nan", "row 1 (completion: a str: 'nan'): it returned nan, which is not finite"),
        ("inf", "row 1 (completion: a str: 'inf'): it returned inf"),
        ("text", "row 1 (completion: a str: 'text'): it returned a str: 'high'"),
        ("short", "batch of 3: it returned 2 values where a list with 3 numbers"),
        ("scalar", "batch of 3: it returned a float: 1.0"),
        ("nothing", "batch of 3: it returned None"),
        ("raise", "row 1 (completion: a str: 'raise'): it raised ValueError: cannot read this one (/"),
    ],
)
def test_raise_names_reward_row_and_cause(isolate, bad, said):
    with pytest.raises(RewardError) as caught:
        score(trouble, ["a", bad, "ccc"], isolate=isolate)
    assert f"reward 'trouble', {said}" in str(caught.value)
    assert "on_error='skip'" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "isolate", "said"),
    [("loop", False, "within"), ("native", True, "within"), ("exit", True, "exit code 1")],
)
@with_patience(0.4, 10.0)
def test_raise_names_the_row_that_hangs_or_dies(bad, isolate, said, seconds):
    with pytest.raises(RewardError) as caught:
        score(trouble, ["a", bad], timeout_seconds=seconds, isolate=isolate)
    assert f"reward 'trouble', row 1 (completion: a str: '{bad}')" in str(caught.value)
    assert said in str(caught.value)


def test_all_failing_rewards_are_named_at_once():
    def other(completions):
        return "no"

    with pytest.raises(RewardError) as caught:
        score([trouble, other], ["nan"])
    assert "reward 'trouble', row 0" in str(caught.value) and "reward 'other', batch of 1" in str(caught.value)


# ---- failures: skip and penalize


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("bad", ["nan", "inf", "text", "raise"])
def test_skip_leaves_out_the_bad_row_only(isolate, bad):
    table = score(trouble, ["a", bad, "ccc"], on_error="skip", isolate=isolate)
    np.testing.assert_array_equal(table.values, [[1.0, NAN, 3.0]])
    counts = table.counts["trouble"]
    assert (counts.errors, counts.timeouts, counts.abstained, counts.penalised) == (1, 0, 0, 0)
    assert len(table.failures) == 1


@pytest.mark.parametrize(("bad", "isolate"), [("loop", False), ("native", True)])
@with_patience(0.4, 10.0)
def test_a_hang_costs_its_row_only(bad, isolate, seconds):
    settings = {"on_error": "penalize", "penalty": -2.5, "timeout_seconds": seconds, "isolate": isolate}
    table = score(trouble, ["a", bad, "ccc"], **settings)
    np.testing.assert_array_equal(table.values, [[1.0, -2.5, 3.0]])
    counts = table.counts["trouble"]
    assert (counts.timeouts, counts.errors, counts.penalised) == (1, 0, 1)


def test_a_death_costs_its_row_only():
    table = score(trouble, ["a", "exit", "ccc"], on_error="skip", isolate=True)
    np.testing.assert_array_equal(table.values, [[1.0, NAN, 3.0]])
    assert table.counts["trouble"].errors == 1 and "exit code 1" in table.failures[0]


@with_patience(1.5, 20.0)
def test_several_kinds_of_trouble_in_one_batch(seconds):
    batch = ["exit", "a", "native", "raise", "none", "nan", "bb"]
    table = score(trouble, batch, on_error="penalize", timeout_seconds=seconds, isolate=True)
    np.testing.assert_array_equal(table.values, [[-1.0, 1.0, -1.0, -1.0, NAN, -1.0, 2.0]])
    counts = table.counts["trouble"]
    assert (counts.rows, counts.abstained, counts.errors, counts.timeouts, counts.penalised) == (7, 1, 3, 1, 4)
    logged = table.log_metrics()
    assert logged["rewards/trouble/timeouts_fraction"] == Mean(1.0, 7.0)
    assert logged["rewards/trouble/penalised_fraction"] == Mean(4.0, 7.0)


@pytest.mark.parametrize("bad", ["short", "scalar", "nothing"])
def test_an_answer_of_the_wrong_shape_is_never_stretched(bad):
    table = score(trouble, ["a", bad, "ccc"], on_error="skip")
    assert np.isnan(table.values).all()
    assert table.counts["trouble"].errors == 3
    table = score(trouble, ["a", bad, "ccc"], on_error="penalize")
    assert (table.values == -1.0).all()


@with_patience(0.4, 10.0)
def test_one_failing_reward_leaves_the_others_alone(seconds):
    table = score([trouble, lengths, slow], ["loop", "bb"], on_error="skip", timeout_seconds=seconds)
    np.testing.assert_array_equal(table.values, [[NAN, 2.0], [4.0, 2.0], [4.0, 2.0]])
    assert table.counts["lengths"].timeouts == 0
    np.testing.assert_array_equal(table.total(), [8.0, 6.0])


@with_patience(0.4, 10.0)
def test_the_set_goes_on_after_failures(seconds):
    with RewardSet(trouble, on_error="skip", timeout_seconds=seconds, isolate=True) as rewards:
        for bad in ("native", "exit", "raise"):
            assert np.isnan(rewards.score(["p"], [bad]).values).all()
        assert rewards.score(["p"], ["abc"]).values.tolist() == [[3.0]]


def test_contained_failures_are_shown_a_few_times_and_counted_always(caplog):
    with caplog.at_level(logging.WARNING, "strop.rewards"), RewardSet(trouble, on_error="skip") as rewards:
        for _ in range(9):
            table = rewards.score(["p"], ["nan"])
            assert table.counts["trouble"].errors == 1
    assert len(caplog.records) == 5
    assert "counted, not shown" in caplog.records[-1].message


def test_a_reward_that_compares_rows_is_not_asked_row_by_row():
    calls = []

    def rank(completions):
        calls.append(len(completions))
        raise ValueError("always")

    rank.needs_groups = True
    table = score(rank, ["a", "b"], on_error="skip")
    assert calls == [2] and table.counts["rank"].errors == 2


def test_a_wrong_set_up_is_never_contained():
    def reward(completions):
        from strop.errors import SetupError

        raise SetupError("install the thing")

    for isolate in (True, False):
        with pytest.raises(SetupError, match="Reward 'reward': install the thing"):
            score(reward, ["a"], on_error="skip", isolate=isolate)


def test_the_users_interrupt_ends_the_call_and_frees_the_workers():
    def interrupted(completions):
        raise KeyboardInterrupt

    with RewardSet([trouble, interrupted], isolate=True, timeout_seconds=60.0) as rewards:
        rewards._calls[1].worker = None  # as a function of this process
        del rewards._workers[1]
        with pytest.raises(KeyboardInterrupt):
            rewards.score(["p"], ["loop"])
        assert rewards._calls[0].worker.pid is None
        rewards._calls[1].function = lengths
        assert rewards.score(["p"], ["abc"]).values.tolist() == [[3.0], [3.0]]


def test_scoring_from_another_thread():
    result = []
    with RewardSet([trouble, slow], on_error="skip") as rewards:
        thread = threading.Thread(target=lambda: result.append(rewards.score(["p"] * 2, ["raise", "abc"])))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(result[0].values, [[NAN, 3.0], [5.0, 3.0]])


# ---- set-up


def test_columns_are_checked_at_set_up():
    def first(completions, solution):
        return []

    def second(completions, answer=None, *, metadata):
        return []

    with RewardSet([first, second]) as rewards:
        rewards.check_columns(["solution", "metadata"])
        with pytest.raises(DataError) as caught:
            rewards.check_columns(["solutions"])
        said = str(caught.value)
        assert "reward 'first' asks for 'solution'" in said and "Did you mean 'solutions'?" in said
        assert "reward 'second' asks for 'metadata'" in said and "'answer'" not in said
        with pytest.raises(DataError, match="they have: none"):
            rewards.score(["p"], ["a"])


def test_ids_and_environments_count_as_missing_when_they_are():
    def ids(completion_ids):
        return []

    def worlds(environments):
        return []

    with RewardSet([ids, worlds]) as rewards:
        with pytest.raises(DataError, match="'completion_ids'"):
            rewards.score(["p"], ["a"], environments=[1])
        with pytest.raises(DataError, match="'environments'"):
            rewards.score(["p"], ["a"], [[1]])


def test_wrong_settings_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        RewardSet(lengths, on_error="skipp", penalty=NAN, timeout_seconds=0, isolate="yes", memory_limit_bytes=0)
    said = str(caught.value)
    for part in (
        "'skipp'",
        "Did you mean 'skip'",
        "penalty is nan",
        "timeout_seconds is 0",
        "isolate is 'yes'",
        "memory_limit_bytes is 0",
    ):
        assert part in said
    with pytest.raises(ConfigError, match="it needs isolate=True"):
        RewardSet(lengths, memory_limit_bytes=1 << 30)


@pytest.mark.parametrize(("weights", "said"), [([1.0], "1 reward weights were given for 2"), ([1.0, NAN], "finite")])
def test_wrong_weights(weights, said):
    with pytest.raises(ConfigError, match=said):
        RewardSet([lengths, slow], weights=weights)


def test_start_and_close():
    rewards = RewardSet([lengths, trouble], isolate=True)
    rewards.start()
    pids = [worker.pid for worker in rewards._workers]
    assert None not in pids and len(set(pids)) == 2
    rewards.score(["p"], ["a"])
    assert [worker.pid for worker in rewards._workers] == pids
    rewards.close()
    assert [worker.pid for worker in rewards._workers] == [None, None]
    assert rewards.score(["p"], ["a"]).values.tolist() == [[1.0], [1.0]]
    rewards.close()
    assert rewards.places == dict.fromkeys(["lengths", "trouble"], "a process of its own")
    assert rewards.functions == [lengths, trouble] and len(rewards) == 2
