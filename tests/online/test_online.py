"""What online methods share: silence of rewards, what a batch counts, what rewards may ask for, text of
pre-tokenised prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.support.tokenizers import toy_tokenizer

from strop.errors import ConfigError, DataError
from strop.testing.cases import letters_reward, make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

ONLINE = ("ppo", "grpo", "rloo", "online-dpo", "nash-md", "xpo")
KEEPS_KL = {"grpo": {"beta": 0.1}, "rloo": {}}


def silent(completions, **kwargs):
    return [None] * len(completions)


def half_silent(completions, **kwargs):
    return [None if i % 2 else float(i) for i in range(len(completions))]


def online(verb, tmp_path, reward, **settings):
    rows = [{"prompt": row["prompt"]} for row in rows_for(verb, 4)]
    options = {"max_completion_length": 6, **settings}
    if verb in ("grpo", "rloo"):
        options.setdefault("num_generations", 4)
    return fix_rollouts(make_trainer(verb, tmp_path, rows=rows, trainer={"reward_funcs": reward}, **options))


@pytest.mark.parametrize("verb", ONLINE)
def test_nothing_is_learned_where_every_reward_is_silent(verb, tmp_path):
    trainer = online(verb, tmp_path, silent, max_steps=2, optim="sgd", learning_rate=1.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    logged = trainer.state.log_history[0]
    assert logged["rewards/silent/abstained_fraction"] == 1.0 and "reward" not in logged
    assert logged["loss"] == 0.0 and math.isfinite(logged["grad_norm"])
    metrics = trainer.evaluate(eval_dataset=[{"prompt": "ant"}, {"prompt": "bee"}])
    assert "eval_reward" not in metrics and metrics["eval_rewards/silent/abstained_fraction"] == 1.0


@pytest.mark.parametrize(
    "options", [{"top_entropy_quantile": 0.5}, {"use_adaptive_entropy": True}, {"num_iterations": 2}], ids=str
)
def test_silence_with_options_that_look_at_the_whole_step(options, tmp_path):
    trainer = online("grpo", tmp_path, silent, max_steps=2, **options)
    trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


@pytest.mark.parametrize("verb", ["ppo", "grpo", "rloo", "online-dpo"])
def test_completions_without_a_reward_are_left_out(verb, tmp_path):
    trainer = online(verb, tmp_path, half_silent, num_generations=4, per_device_train_batch_size=8)
    groups = trainer.rollout([trainer.train_dataset[0]], 4, training=True)
    trainer.score_groups(groups, "train")
    assert groups[0].rewards.isnan().tolist() == [False, True, False, True]
    (tree,) = trainer.make_trees(groups, training=True)
    known = groups[0].completions[::2]
    if verb in ("grpo", "rloo"):
        assert tree.sampled.advantages[1::2] == [0.0, 0.0] and sum(tree.sampled.advantages) == pytest.approx(0.0)
    else:
        assert all(ids in known for ids in tree.completions)


@pytest.mark.parametrize(
    ("verb", "prompts"), [("grpo", 2), ("rloo", 2), ("ppo", 8), ("online-dpo", 8), ("nash-md", 8), ("xpo", 8)]
)
def test_what_a_batch_of_eight_counts(verb, prompts, tmp_path):
    """Completions for methods on groups, prompts for methods on pairs."""
    trainer = online(verb, tmp_path, letters_reward, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert trainer.sizes.prompts == prompts


def test_rewards_that_ask_for_missing_columns_are_told_at_set_up(tmp_path):
    def needs_answer(completions, answer):
        return [0.0] * len(completions)

    rows = [{"prompt": "a", "answr": "b"}]
    with pytest.raises(DataError, match=r"asks for 'answer'.*Did you mean 'answr'"):
        make_trainer("grpo", tmp_path, rows=rows, trainer={"reward_funcs": needs_answer})


def test_prompts_given_as_ids_have_a_text_for_rewards(tmp_path):
    seen = []

    def watch(prompts, completions):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    tokenizer = toy_tokenizer("auto_bos")
    rows = [{"input_ids": tokenizer("the good ant")["input_ids"]}]
    trainer = make_trainer("ppo", tmp_path, rows=rows, tokenizer=tokenizer, trainer={"reward_funcs": watch})
    trainer.prepare_step([trainer.train_dataset[0]])
    assert seen == ["the good ant"]


def test_a_reference_that_cannot_be_used_is_refused(tmp_path):
    model = make_trainer("sft", tmp_path).model
    with pytest.raises(ConfigError, match="while beta is 0; remove ref_model"):
        make_trainer("grpo", tmp_path, trainer={"ref_model": model})
    with pytest.raises(ConfigError, match="sync_ref_model=True has no effect unless beta > 0; beta is 0"):
        make_trainer("grpo", tmp_path, sync_ref_model=True)


def test_what_rewards_note_stands_beside_the_completions(tmp_path, capsys):
    def noting(completions, log_extra):
        log_extra("golden", [f"GOLD{i}" for i in range(len(completions))])
        return [float(i) for i in range(len(completions))]

    trainer = online("grpo", tmp_path, noting, max_steps=1, logging_steps=1, log_completions=True)
    trainer.train()
    lines = [json.loads(line) for line in (Path(trainer.args.output_dir) / "samples.jsonl").read_text().splitlines()]
    assert lines and all(line["notes"]["golden"] == f"GOLD{int(line['reward'])}" for line in lines)
    assert "golden" in capsys.readouterr().out


def test_a_second_training_begins_with_a_round_of_its_own(tmp_path):
    trainer = online("ppo", tmp_path, letters_reward, max_steps=1)
    trainer.train()
    assert trainer.buffer  # steps of the round that were not made
    trainer.train()
    assert trainer.rounds == 2
