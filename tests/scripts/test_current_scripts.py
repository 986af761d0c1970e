"""Scripts as people write them for TRL today (and for its last release that had PPO), with the import changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from strop.testing.cases import rows_for

Script = Callable[..., dict[str, Any]]

CHAT = [
    [{"role": "user", "content": "say ant"}, {"role": "assistant", "content": "ant"}],
    [{"role": "user", "content": "say bee"}, {"role": "assistant", "content": "bee bee"}],
    [{"role": "user", "content": "say cat please"}, {"role": "assistant", "content": "cat"}],
    [{"role": "user", "content": "say dog"}, {"role": "assistant", "content": "the dog"}],
]

SFT = """
from transformers import AutoModelForCausalLM, AutoTokenizer
from strop import SFTConfig, SFTTrainer

model_name = "Qwen/Qwen2-0.5B"
model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(model_name)

training_args = SFTConfig(
    output_dir="sft-out",
    per_device_train_batch_size=2,
    max_steps=2,
    max_length=128,
    packing=True,
    assistant_only_loss=False,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=1,
    save_strategy="steps",
    save_steps=1,
    report_to="none",
)
trainer = SFTTrainer(
    model=model,
    args=training_args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model(training_args.output_dir)
"""


def test_sft_on_conversations(run_script: Script) -> None:
    rows = Dataset.from_dict({"messages": CHAT})
    trainer = run_script(SFT, dataset=DatasetDict(train=rows, test=rows))["trainer"]
    keys = {key for entry in trainer.state.log_history for key in entry}
    assert {"loss", "mean_token_accuracy", "entropy", "num_tokens", "eval_loss", "eval_mean_token_accuracy"} <= keys
    tokenizer, model = AutoTokenizer.from_pretrained("sft-out"), AutoModelForCausalLM.from_pretrained("sft-out")
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(CHAT[0][:1], **options)
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert {path.name for path in Path("sft-out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


DPO = """
from strop import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B")
ref_model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2-0.5B")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2-0.5B")
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token

training_args = DPOConfig(
    output_dir="dpo-out", beta=0.1, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0],
    max_length=64, truncation_mode="keep_start", precompute_ref_log_probs=True, max_steps=2, logging_steps=1,
    per_device_train_batch_size=2, gradient_accumulation_steps=2, gradient_checkpointing=True, report_to="none",
)
trainer = DPOTrainer(
    model, ref_model, args=training_args, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
)
trainer.train()
metrics = trainer.evaluate()
trainer.save_model()
"""


def test_dpo_on_conversations(run_script: Script) -> None:
    rows = [
        {"prompt": chat[:1], "chosen": chat[1:], "rejected": [{"role": "assistant", "content": "no"}]} for chat in CHAT
    ]
    scope = run_script(DPO, dataset=Dataset.from_list(rows))
    assert {"eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"} <= scope["metrics"].keys()
    first = scope["trainer"].state.log_history[0]
    assert {"rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "logits/chosen"} <= first.keys()
    assert AutoModelForCausalLM.from_pretrained("dpo-out").num_parameters() > 0


GRPO = '''
import re
from strop import GRPOConfig, GRPOTrainer
from peft import LoraConfig

def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think>$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content) else 0.0 for content in contents]

def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion[0]["content"])) / 20 for completion in completions]

def reward_answer(prompts, completions, answer, **kwargs):
    return [float(a in c[0]["content"]) for a, c in zip(answer, completions)]

training_args = GRPOConfig(
    output_dir="grpo-out", per_device_train_batch_size=4, num_generations=4, max_prompt_length=64,
    max_completion_length=12, max_steps=2, logging_steps=1, reward_weights=[0.5, 1.0, 1.0], beta=0.04,
    scale_rewards="group", loss_type="dapo", epsilon_high=0.28, mask_truncated_completions=False, report_to=[],
)
trainer = GRPOTrainer(
    model="Qwen/Qwen2-0.5B",
    reward_funcs=[format_reward_func, reward_len, reward_answer],
    args=training_args,
    train_dataset=dataset,
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
)
trainer.train()
trainer.save_model()
'''


def test_grpo_with_several_rewards(run_script: Script) -> None:
    rows = [{"prompt": chat[:1], "answer": chat[1]["content"]} for chat in CHAT]
    trainer = run_script(GRPO, dataset=Dataset.from_list(rows))["trainer"]
    logged = trainer.state.log_history[0]
    names = ("format_reward_func", "reward_len", "reward_answer")
    assert {f"rewards/{name}/{what}" for name in names for what in ("mean", "std")} <= logged.keys()
    assert {"reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "completions/mean_length"} <= logged.keys()
    expected = sum(w * logged[f"rewards/{n}/mean"] for w, n in zip((0.5, 1.0, 1.0), names, strict=True))
    assert logged["reward"] == pytest.approx(expected)
    assert Path("grpo-out/adapter_model.safetensors").is_file()


PPO = """
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from strop import PPOConfig, PPOTrainer

training_args = PPOConfig(
    output_dir="ppo-out", learning_rate=1e-3, per_device_train_batch_size=2, gradient_accumulation_steps=2,
    num_ppo_epochs=2, num_mini_batches=1, response_length=8, total_episodes=8, missing_eos_penalty=1.0, kl_coef=0.05,
    cliprange=0.2, vf_coef=0.1, gamma=1.0, lam=0.95, temperature=0.7, logging_steps=1, report_to="none",
)
tokenizer = AutoTokenizer.from_pretrained("model_id", padding_side="left")
value_model = AutoModelForSequenceClassification.from_pretrained("reward_model_id", num_labels=1)
reward_model = AutoModelForSequenceClassification.from_pretrained("reward_model_id", num_labels=1)
policy = AutoModelForCausalLM.from_pretrained("model_id")
ref_policy = AutoModelForCausalLM.from_pretrained("model_id")

def tokenize(element):
    outputs = tokenizer(element["prompt"], padding=False)
    return {"input_ids": outputs["input_ids"]}

train_dataset = dataset.map(tokenize, remove_columns=dataset.column_names)

trainer = PPOTrainer(
    args=training_args,
    processing_class=tokenizer,
    model=policy,
    ref_model=ref_policy,
    reward_model=reward_model,
    value_model=value_model,
    train_dataset=train_dataset,
    eval_dataset=train_dataset,
)
trainer.train()
trainer.save_model(training_args.output_dir)
"""


def test_ppo_with_four_models(run_script: Script) -> None:
    scope = run_script(PPO, dataset=Dataset.from_list(rows_for("ppo", 8)))
    trainer = scope["trainer"]
    assert trainer.state.global_step == 4  # 8 episodes, 4 at a time, each learned from twice
    wanted = "objective/kl objective/entropy objective/scores objective/rlhf_reward policy/approxkl_avg loss/value_avg"
    assert {*wanted.split(), "episode"} <= trainer.state.log_history[0].keys()
    policy = AutoModelForCausalLM.from_pretrained("ppo-out")
    critic = AutoModelForSequenceClassification.from_pretrained("ppo-out/value_model")
    ids = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        assert torch.equal(policy(ids).logits, trainer.policy.eval()(input_ids=ids).logits)
    assert torch.equal(critic.score.weight, trainer.model.critic.score.weight)
    assert not torch.equal(critic.score.weight, scope["reward_model"].score.weight)
