"""PPO's two models as one: evaluated, saved, loaded and resumed together."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from strop.errors import ConfigError, SetupError
from strop.testing.cases import letters_reward, make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

IDS = torch.tensor([[10, 11, 12, 13]])


def ppo(folder, **options):
    options = {"dtype": torch.float32, "max_completion_length": 5, "per_device_train_batch_size": 2, **options}
    return make_trainer("ppo", folder, rows=rows_for("ppo", 6), **options)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}


def test_evaluation_leaves_everything_as_it_is(tmp_path):
    trainer = ppo(tmp_path, eval_rows=rows_for("ppo", 3, seed=1))
    before, rounds = weights(trainer), trainer.rounds
    first = trainer.evaluate()
    assert {"eval_loss", "eval_reward", "eval_objective/kl", "eval_loss/value_avg", "eval_val/ratio"} <= first.keys()
    assert first["eval_objective/kl"] == pytest.approx(0.0, abs=1e-5) and first["eval_val/ratio"] == pytest.approx(1.0)
    timing = ("runtime", "per_second", "_time")
    plain = {k: v for k, v in first.items() if not k.endswith(timing)}
    assert plain == {k: v for k, v in trainer.evaluate().items() if not k.endswith(timing)}
    assert trainer.rounds == rounds and not trainer.buffer and not trainer._metrics["train"].state()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_saved_models_are_the_trained_ones_and_start_the_next_run(tmp_path):
    trainer = ppo(tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "value_model")
    assert critic.config.num_labels == 1
    for saved, trained in ((policy, trainer.model.policy), (critic, trainer.model.critic)):
        pairs = zip(saved.named_parameters(), trained.named_parameters(), strict=True)
        assert all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)
    again = ppo(
        tmp_path / "next",
        model=str(tmp_path / "out"),
        trainer={"value_model": str(tmp_path / "out" / "value_model")},
        max_steps=1,
    )
    assert torch.equal(again.model.critic.score.weight, trainer.model.critic.score.weight)
    again.train()


def test_value_model_default_is_a_copy_that_shares_nothing(tmp_path):
    trainer = ppo(tmp_path, max_steps=1)
    policy = {p.data_ptr() for p in trainer.model.policy.parameters()}
    assert not policy & {p.data_ptr() for p in trainer.model.critic.parameters()}
    before = weights(trainer)
    trainer.train()
    moved = {name.split(".")[0] for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert moved == {"policy", "critic"}


def test_the_critic_of_an_adapted_policy_has_an_adapter_of_its_own(tmp_path):
    """It starts as a copy of the policy's adapter, trained ones too; what the policy keeps frozen stays frozen."""
    base = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer()))
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = ppo(tmp_path / "run", model=PeftModel(base, config), max_steps=2, gradient_checkpointing=True)
    policy, critic = trainer.model.policy, trainer.model.critic
    with torch.no_grad():
        states = (policy.get_base_model().model(IDS), critic.get_base_model().model(IDS))
    assert torch.allclose(states[0].last_hidden_state, states[1].last_hidden_state, atol=1e-6)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name or "score" in name for name in moved)
    assert {name.split(".")[0] for name in moved} == {"policy", "critic"}
    trainer.save_model(str(tmp_path / "out"))
    again = {"value_model": str(tmp_path / "out" / "value_model")}
    second = ppo(tmp_path / "next", model=str(tmp_path / "out"), trainer=again, max_steps=1)
    with torch.no_grad():
        scored = [made.model.critic.eval()(input_ids=IDS).logits for made in (trainer, second)]
    assert torch.allclose(*scored, atol=1e-5)
    second.train()


@pytest.mark.parametrize("cut", [1, 2, 3], ids=["within a round", "after a round", "within the next"])
def test_resume_equals_not_stopping(cut, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= cut

    def run(folder, *, callbacks=(), resume=None):
        options = {
            "num_iterations": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "max_steps": 5,
            "lr_scheduler_type": "linear",
        }
        trainer = ppo(folder, trainer={"callbacks": list(callbacks)}, **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", callbacks=[Stop()])
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.state.global_step == 5
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_adapters_of_policy_and_critic_resume(tmp_path):
    base = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer()))
    base.save_pretrained(tmp_path / "base")

    def run(folder, steps, resume=None):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "trainer": {"peft_config": config}}
        trainer = ppo(folder, model=str(tmp_path / "base"), **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "cut", 1)
    resumed = run(tmp_path / "cut", 2, resume=True)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in expected.items())


def test_adapters_are_saved_without_the_reference_among_them(tmp_path):
    """Training goes on from a trained adapter: the reference is that adapter's frozen copy, and is no part of the
    result."""
    base = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer()))
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = PeftModel(base, config)
    trainer = ppo(tmp_path / "run", model=model, max_steps=2, trainer={"reward_funcs": letters_reward})
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "reference").exists() and (tmp_path / "out" / "adapter_model.safetensors").is_file()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=IDS).logits, trainer.policy.eval()(input_ids=IDS).logits, atol=1e-5)


def test_narrowed_sampling_keeps_the_ratio_at_one(tmp_path):
    """The update sees the distribution that was sampled from, top-k included."""
    trainer = ppo(tmp_path, dtype=torch.float64, top_k=5, temperature=0.7)
    groups = trainer.rollout([trainer.train_dataset[i] for i in range(2)], 1, training=True)
    trainer.score_groups(groups, "train")
    trees = trainer.make_trees(groups, training=True)
    with torch.no_grad():
        scores = trainer.score(trainer.model, trainer.build(trees), False)
    sampled = torch.tensor([v for group in groups for values in group.sampler_logps for v in values]).double()
    remembered = torch.tensor([v for e in trees for values in e.sampled.old_logps for v in values]).double()
    assert torch.allclose(scores.logps, sampled, atol=1e-6) and torch.allclose(remembered, sampled, atol=1e-6)


def test_completions_are_generated_and_scored_for_people(tmp_path, capsys):
    trainer = ppo(tmp_path, eval_rows=rows_for("ppo", 3, seed=1), per_device_eval_batch_size=2)
    trainer.generate_completions()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == letters_reward([row["completion"] for row in rows]) and len(rows) == 3
    assert "completion" in capsys.readouterr().out and not trainer._metrics["eval"].state()
    trainer.generate_completions(sampling=True)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3 + 2
    with pytest.raises(ConfigError, match="eval_dataset="):
        ppo(tmp_path / "none").generate_completions()


def test_a_value_model_that_lacks_tokens_is_refused(tmp_path):
    small = tiny_model("llama", task="score", vocab_size=100)
    with pytest.raises(SetupError, match="value_model embeds 100 tokens and the tokenizer has 288"):
        make_trainer("ppo", tmp_path, trainer={"value_model": small})
