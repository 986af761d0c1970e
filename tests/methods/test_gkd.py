"""Whose completions GKD learns on, and which teachers cannot teach."""

from __future__ import annotations

import pytest
import torch

from strop.errors import ConfigError, DataError, RolloutError
from strop.online.groups import Group
from strop.rollout import SamplingParams, make_generator
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ROWS = rows_for("gkd", 3)
GREEDY = {"top_k": 1, "max_completion_length": 6}


@pytest.mark.parametrize(("lmbda", "seq_kd"), [(1.0, False), (0.0, True), (0.0, False)])
def test_completions_are_those_of_student_teacher_or_rows(lmbda, seq_kd, tmp_path):
    trainer = make_trainer("gkd", tmp_path, rows=ROWS, lmbda=lmbda, seq_kd=seq_kd, **GREEDY)
    rows = [trainer.train_dataset[i] for i in range(3)]
    trees = trainer.prepare_step(rows)
    prompts = [row.prompt_ids for row in rows]

    def greedy(model):
        generator = make_generator(model=model, tokenizer=trainer.processing_class)
        drawn = generator.generate(prompts, 1, SamplingParams(6, top_k=1, temperature=0.9, seed=0))
        return [group[0] for group in drawn.completions]

    student, teacher = greedy(trainer.model), greedy(trainer.teacher)
    assert student != teacher
    expected = student if lmbda else teacher if seq_kd else [row.completions[0] for row in rows]
    assert [tree.completions[0] for tree in trees] == expected


def test_a_teacher_of_another_size_teaches(tmp_path):
    teacher = tiny_model("llama", dtype=torch.float64, vocab_size=len(toy_tokenizer()), hidden_size=48, seed=3)
    trainer = make_trainer("gkd", tmp_path, rows=ROWS, trainer={"teacher_model": teacher}, max_steps=1, **GREEDY)
    trainer.train()
    assert trainer.state.log_history[0]["jsd"] > 0


@pytest.mark.parametrize("target_modules", [None, ["q_proj", "lm_head"]], ids=["fused", "called"])
def test_rows_of_padding_behind_the_last_token_say_nothing(target_modules, tmp_path):
    """A teacher padded to more rows is the teacher with these rows cut off."""
    from peft import LoraConfig

    tokens = len(toy_tokenizer())
    padded = tiny_model("llama", dtype=torch.float64, vocab_size=tokens + 8, seed=3)
    plain = tiny_model("llama", dtype=torch.float64, vocab_size=tokens, seed=3)
    plain.load_state_dict({n: w[:tokens] if len(w) == tokens + 8 else w for n, w in padded.state_dict().items()})
    losses = []
    for name, teacher in (("padded", padded), ("plain", plain)):
        extra = {"teacher_model": teacher}
        if target_modules:
            extra["peft_config"] = LoraConfig(r=2, target_modules=target_modules)
        trainer = make_trainer("gkd", tmp_path / name, rows=ROWS, trainer=extra, max_steps=1, lmbda=0.0)
        trainer.train()
        losses.append(trainer.state.log_history[0]["jsd"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12) and losses[0] > 0


def test_a_teacher_that_lacks_tokens_is_refused(tmp_path):
    teacher = tiny_model("llama", dtype=torch.float64, vocab_size=len(toy_tokenizer()) - 4)
    with pytest.raises(ConfigError, match="tokens in its vocabulary and the teacher"):
        make_trainer("gkd", tmp_path, rows=ROWS, trainer={"teacher_model": teacher})


def test_a_sampled_row_of_padding_is_named(tmp_path):
    tokens = len(toy_tokenizer())
    student = tiny_model("llama", dtype=torch.float64, vocab_size=tokens + 8)
    trainer = make_trainer("gkd", tmp_path, rows=ROWS, model=student, **GREEDY)
    group = Group(trainer.train_dataset[0], [[5, tokens + 3]], [[0.0, 0.0]], ["stop"])
    with pytest.raises(RolloutError, match=rf"token {tokens + 3}.*resize_token_embeddings\({tokens}\)"):
        trainer.make_trees([group], training=True)


@pytest.mark.parametrize("settings", [{"lmbda": 1.0}, {"lmbda": 0.5, "seq_kd": True}], ids=str)
def test_prompts_will_do_where_every_step_samples(settings, tmp_path):
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    trainer = make_trainer("gkd", tmp_path, rows=prompts, eval_rows=prompts, max_steps=2, **GREEDY, **settings)
    trainer.train()
    assert trainer.state.log_history[0]["jsd"] > 0 and trainer.evaluate()["eval_jsd"] > 0
    with pytest.raises(DataError, match="completion"):
        make_trainer("gkd", tmp_path, rows=prompts, lmbda=0.5, **GREEDY)
