"""Online methods with tools and environments on the real engine: what is masked, what rewards and samples see."""

from __future__ import annotations

import json

import pytest
import torch
from tests.support.conversations import Script, sampler_logps_of
from tests.support.templates import KINDS, tokenizer_with

from strop.errors import ConfigError, DataError, RolloutError
from strop.records import Rollout
from strop.testing.cases import make_trainer, method_of, settings
from strop.testing.tiny import tiny_model

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def length(completions, **columns):
    return [float(len(str(completion))) for completion in completions]


class Countdown:
    """Answers twice, then ends; the reward is the number of turns."""

    def reset(self, start=0, **row):
        self.reward = 0.0
        return f" start {start}"

    def step(self, text):
        self.reward += 1
        return f"turn {self.reward:.0f}", self.reward == 3


class Counter:
    """Counts what the model adds."""

    def reset(self, start: int = 0, **row):
        self.count = start

    def add(self, a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        self.count = a + b
        return self.count

    def get_reward(self) -> float:
        return float(self.count)


class Subtask(Counter):
    """Brings its own task."""

    def reset(self, **row):
        super().reset(start=7)
        return "What is 3 and 4?"


def build(tmp_path, kind="gathered", verb="grpo", rows=None, **trainer):
    tokenizer, _ = tokenizer_with(KINDS[kind])
    rows = rows or [{"prompt": [{"role": "user", "content": f"go {i}"}], "start": i} for i in range(2)]
    model = tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer))
    if "environment_factory" not in trainer:
        trainer.setdefault("reward_funcs", length)
    else:
        trainer.setdefault("reward_funcs", None)
    given = {"max_completion_length": 120, "num_generations": 2, "max_length": None, **trainer.pop("settings", {})}
    return make_trainer(verb, tmp_path, rows=rows, model=model, tokenizer=tokenizer, trainer=trainer, **given)


def sampled(trainer, training=True):
    groups = trainer.rollout([trainer.train_dataset[0]], 2, training=training)
    trainer.score_groups(groups, "train")
    return groups[0]


@pytest.mark.parametrize("kind", ["gathered", "opened"])
def test_what_is_sampled_has_ratio_one_in_every_stretch(kind, tmp_path):
    trainer = build(tmp_path, kind, reward_funcs=None, environment_factory=Countdown)
    group = sampled(trainer)
    assert group.rewards.tolist() == [float(e.reward) for e in group.environments]
    group.advantages = torch.ones(2)
    trees = trainer.trees(group)
    assert (len(trees) > 1) == (kind == "opened")
    batch = trainer.build(trees)
    scores = trainer.score(trainer.model, batch, log=False)
    wrote = sampler_logps_of(trees)
    assert torch.allclose(scores.logps.detach(), torch.tensor(wrote).double(), atol=1e-6)
    assert " start 0<|im_end|>" in trainer.processing_class.decode(trees[0].prompt_ids)


def test_rewards_and_samples_see_the_conversation(tmp_path):
    seen = []

    def reward(completions, prompts, tools, **columns):
        seen.extend(completions)
        return [float(c[-1]["content"] == "42") for c in completions]

    trainer = build(tmp_path, tools=[add], reward_funcs=reward, settings={"max_steps": 1, "logging_steps": 1})
    trainer._generator = Script(trainer.processing_class, lambda text, place: "42" if "<r>42</r>" in text else CALL)
    trainer.train()
    assert [message["role"] for message in seen[0]] == ["assistant", "tool", "assistant"]
    assert seen[0][0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 20, "b": 22}}
    assert seen[0][1] == {"role": "tool", "name": "add", "tool_call_id": "000000000", "content": "42"}
    row = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert row["reward"] == 1.0 and [turn["role"] for turn in row["turns"]] == ["assistant", "tool", "assistant"]
    wrote = sum(turn["tokens"] for turn in row["turns"] if turn["role"] == "assistant")
    log = trainer.state.log_history[0]
    assert log["completions/mean_length"] == wrote and log["turns/answer_tokens"] == row["turns"][1]["tokens"]
    assert log["tools/call_frequency"] == 1.0 and log["turns/mean_count"] == 2.0


def test_tool_calls_are_counted_where_they_happen_and_none_is_an_alarm(tmp_path):
    trainer = build(tmp_path, tools=[add], settings={"max_steps": 1, "logging_steps": 1})
    for training, mode, other in ((False, "eval", "train"), (True, "train", "eval")):
        trainer.rollout([trainer.train_dataset[0]], 2, training=training)
        assert trainer._metrics[mode].drain()["tools/call_frequency"] == 0.0
        assert not trainer._metrics[other].state()
    trainer.train()
    assert '"alarm": "no_tool_calls"' in (tmp_path / "alarms.jsonl").read_text()


def test_environments_as_trl_has_them(tmp_path):
    trainer = build(tmp_path, reward_funcs=None, environment_factory=Counter)
    trainer._generator = Script(trainer.processing_class, lambda text, place: "so" if "<r>42</r>" in text else CALL)
    group = sampled(trainer)
    assert group.rewards.tolist() == [42.0, 42.0] and group.reward_names == ["Counter"]
    both = build(tmp_path, environment_factory={"a": Counter, "b": Countdown}, rows=[
        {"prompt": [{"role": "user", "content": name}], "environment": name} for name in "ab"
    ])  # fmt: skip
    both._generator = Script(both.processing_class, lambda text, place: "so")
    groups = both.rollout([both.train_dataset[i] for i in range(2)], 2, training=True)
    assert [type(e).__name__ for g in groups for e in g.environments] == ["Counter"] * 2 + ["Countdown"] * 2
    shown = [both.processing_class.decode(context) for context in both._generator.seen[0]]
    assert '"add"' in shown[0] and '"add"' not in shown[2]


def test_tasks_may_come_from_the_environment(tmp_path):
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    model = tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer))
    made = {"model": model, "processing_class": tokenizer, "environment_factory": Subtask}
    trainer_class = method_of("grpo").trainer()
    args = settings("grpo", tmp_path, max_steps=1, num_generations=2, max_completion_length=8, max_length=None)
    trainer = trainer_class(args=args, **made)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/Subtask/mean"] == 7.0
    with pytest.raises(ConfigError, match="max_steps"):
        trainer_class(args=settings("grpo", tmp_path, max_steps=-1, num_generations=2), **made)


def test_what_fails_is_not_learned_from(tmp_path):
    class Moody(Countdown):
        made = 0

        def __init__(self):
            Moody.made += 1
            self.number, self.reward = Moody.made, 0.0

        def step(self, text):
            if self.number == 2:
                raise ValueError("illegal move")
            return super().step(text)

    trainer = build(tmp_path, reward_funcs=None, environment_factory=Moody)
    trainer._generator = Script(trainer.processing_class, lambda text, place: "so")
    group = sampled(trainer)
    assert group.finish_reasons == ["stop", "failed"] and group.rewards.isnan().tolist() == [False, True]
    assert not any(group.loss_mask[1]) and any(group.loss_mask[0])


def test_prompts_of_plain_text_have_no_tools(tmp_path):
    with pytest.raises(ConfigError, match="plain text"):
        build(tmp_path, tools=[add], rows=[{"prompt": "go"}] * 2)


@pytest.mark.parametrize(
    ("verb", "said"),
    [("online-dpo", "past_turns='sampled'"), ("xpo", "the opponent of XPO"), ("nash-md", "the opponent of NashMD")],
)
def test_pairs_refuse_a_template_that_makes_several_contexts(verb, said, tmp_path):
    settings = {"num_generations": 2 if verb == "online-dpo" else 1}
    with pytest.raises(ConfigError, match=said):
        build(tmp_path, "opened", verb, environment_factory=Countdown, reward_funcs=length, settings=settings)


def test_observations_that_differ_make_prompts_that_differ(tmp_path):
    class Dice(Countdown):
        thrown = 0

        def reset(self, **row):
            super().reset()
            Dice.thrown += 1
            return f" {Dice.thrown}"

    group = sampled(build(tmp_path, reward_funcs=None, environment_factory=Dice))
    assert len({str(prompt) for prompt in group.prompts}) == 2
    trees = build(tmp_path, verb="ppo", environment_factory=Dice).trees(group, 0)
    assert len(trees) == 2 and trees[0].prompt_ids != trees[1].prompt_ids
    with pytest.raises(RolloutError, match="reset"):
        group.tree([0, 1])


# ---- a function of the user's own ----------------------------------------------------------------------------------


def test_a_rollout_function_replaces_the_engine(tmp_path):
    def rollout_func(prompts, n, sampling, trainer):
        return Rollout(
            prompts,
            [[[5, 6]] * n for _ in prompts],
            [[[-1.0, -1.0]] * n for _ in prompts],
            [["stop"] * n for _ in prompts],
        )

    trainer = build(tmp_path, rollout_func=rollout_func)
    assert trainer.rollout([trainer.train_dataset[0]], 2, training=True)[0].completions == [[5, 6], [5, 6]]


def test_a_rollout_function_as_trl_has_it(tmp_path):
    def rollout_func(prompts, trainer):
        assert prompts == [[{"role": "user", "content": "go 0"}]] * 2
        return {
            "prompt_ids": [[7, 8], [7, 9]],
            "completion_ids": [[5, 6], [5]],
            "logprobs": [[[-1.0], [-2.0]], [[-1.0]]],
            "env_mask": [[1, 0], [1]],
            "env_reward": [0.25, 0.75],
        }

    def reward(completions, env_reward, **columns):
        return env_reward

    trainer = build(tmp_path, rollout_func=rollout_func, reward_funcs=reward)
    group = sampled(trainer)
    assert group.rewards.tolist() == [0.25, 0.75] and group.loss_mask == [[1, 0], [1]]
    trees = trainer.trees(group)
    assert [tree.prompt_ids for tree in trees] == [[7, 8], [7, 9]] and trees[0].sampled.sampler_logps == [[-1.0, -2.0]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"completion_ids": [[[5]]]}, "completions per prompt"),
        ({"logprobs": [[[float("nan")], [-1.0]]]}, "not finite"),
        ({"completion_ids": [[[5], [10_000]]]}, "not in the vocabulary"),
        ({"loss_mask": [[[1, 1], [1]]]}, "a 0 or 1 for each token"),
        ({"finish_reasons": [["eos", "stop"]]}, "finish reason is 'eos'"),
        ({"completion_ids": [[[], [5]]]}, "it is empty"),
        ({"logprobs": None}, "without ['logprobs']"),
    ],
    ids=str,
)
def test_what_a_rollout_function_returns_is_checked(change, said, tmp_path):
    right = {"completion_ids": [[[5], [5]]], "logprobs": [[[-1.0], [-1.0]]]}
    trainer = build(tmp_path, rollout_func=lambda prompts, n, sampling, trainer: {**right, **change})
    with pytest.raises(RolloutError) as problem:
        trainer.rollout([trainer.train_dataset[0]], 2, training=True)
    assert said in str(problem.value)


def test_a_rollout_function_of_neither_form_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="takes"):
        build(tmp_path, rollout_func=lambda one: one)


def test_a_rows_tools_may_be_named(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "go"}], "tools": ["add"]}] * 2
    trainer = build(tmp_path, tools=[add], rows=rows)
    assert '"add"' in trainer.processing_class.decode(trainer.train_dataset[0].prompt_ids)
    with pytest.raises(DataError, match="tools"):
        build(tmp_path, tools=[add], rows=[{**rows[0], "tools": ["other"]}] * 2)
