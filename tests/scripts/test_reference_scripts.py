"""The scripts of the guide that people hold in their hands, as printed there, with `trl` replaced by `strop`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import strop
from strop.methods.registry import METHODS
from strop.testing.cases import rows_for

Script = Callable[..., dict[str, Any]]


def data(verb: str, count: int = 4) -> Dataset:
    return Dataset.from_list(rows_for(verb, count))


REWARD = """
from strop import RewardTrainer, RewardConfig

config = RewardConfig(
    output_dir="./reward_model",
    learning_rate=1e-5,
    per_device_train_batch_size=4,
    max_length=512,
)

trainer = RewardTrainer(
    model="Qwen/Qwen2-0.5B",
    args=config,
    train_dataset=preference_dataset,  # Must have chosen/rejected columns
)

trainer.train()
"""

KTO = """
from strop import KTOTrainer, KTOConfig

config = KTOConfig(
    beta=0.1,  # KTO beta parameter
    desirable_weight=1.0,
    undesirable_weight=1.0,
)

trainer = KTOTrainer(
    model="model_id",
    args=config,
    train_dataset=dataset,  # Needs 'completion' and 'label' (True/False)
)

trainer.train()
"""

ORPO = """
from strop import ORPOTrainer, ORPOConfig

config = ORPOConfig(
    beta=0.1,  # OR loss weight
    learning_rate=5e-6,
)

trainer = ORPOTrainer(
    model="model_id",
    args=config,
    train_dataset=preference_dataset,
)

trainer.train()
"""

RLOO = """
from strop import RLOOTrainer, RLOOConfig

config = RLOOConfig(
    num_samples=4,  # Samples per prompt
    kl_coef=0.05,
)

trainer = RLOOTrainer(
    model="model_id",
    reward_model="reward_model_id",
    args=config,
    train_dataset=dataset,
)

trainer.train()
"""

CPO = """
from strop import CPOTrainer, CPOConfig

config = CPOConfig(
    beta=0.1,
    loss_type="simpo",  # or "hinge"
)

trainer = CPOTrainer(
    model="model_id",
    args=config,
    train_dataset=preference_dataset,
)

trainer.train()
"""

BCO = """
from strop import BCOTrainer, BCOConfig

trainer = BCOTrainer(
    model="model_id",
    args=BCOConfig(),
    train_dataset=dataset,
)

trainer.train()
"""

ONLINE_DPO = """
from strop import OnlineDPOTrainer, OnlineDPOConfig

config = OnlineDPOConfig(
    beta=0.1,
    num_generations=2,  # Generate pairs online
)

trainer = OnlineDPOTrainer(
    model="model_id",
    reward_model="reward_model_id",
    args=config,
    train_dataset=prompt_dataset,  # Just prompts, not preferences
)

trainer.train()
"""

NASH_MD = """
from strop import NashMDTrainer, NashMDConfig

trainer = NashMDTrainer(
    model="model_id",
    reward_model="reward_model_id",
    args=NashMDConfig(),
    train_dataset=dataset,
)

trainer.train()
"""

GKD = """
from strop import GKDTrainer, GKDConfig

config = GKDConfig(
    temperature=2.0,  # Soften distributions
)

trainer = GKDTrainer(
    model="small_model",
    teacher_model="large_aligned_model",
    args=config,
    train_dataset=dataset,
)

trainer.train()
"""

XPO = """
from strop import XPOTrainer, XPOConfig

trainer = XPOTrainer(
    model="model_id",
    args=XPOConfig(beta=0.1),
    train_dataset=preference_dataset,
)

trainer.train()
"""

PRM = """
from strop import PRMTrainer, PRMConfig

trainer = PRMTrainer(
    model="model_id",
    args=PRMConfig(),
    train_dataset=step_annotated_dataset,
    # Dataset must have step-by-step labels
)

trainer.train()
"""

SCRIPTS = {
    "reward": (REWARD, "preference_dataset"),
    "kto": (KTO, "dataset"),
    "orpo": (ORPO, "preference_dataset"),
    "rloo": (RLOO, "dataset"),
    "cpo": (CPO, "preference_dataset"),
    "bco": (BCO, "dataset"),
    "online-dpo": (ONLINE_DPO, "prompt_dataset"),
    "nash-md": (NASH_MD, "dataset"),
    "gkd": (GKD, "dataset"),
    "xpo": (XPO, "preference_dataset"),
    "prm": (PRM, "step_annotated_dataset"),
}
"""Verb -> script, and the name it gives to its data."""

HEADS = {"reward": AutoModelForSequenceClassification, "prm": AutoModelForTokenClassification}


@pytest.mark.parametrize("verb", SCRIPTS)
def test_script_runs_saves_and_loads(verb: str, run_script: Script) -> None:
    text, name = SCRIPTS[verb]
    trainer = run_script(text, **{name: data(verb)})["trainer"]
    assert trainer.state.global_step == 3 * (2 if verb == "rloo" else 1)
    logged = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    assert logged and abs(logged[0]["train_loss"]) < 1e3

    trainer.save_model("./final_model")
    model = HEADS.get(verb, AutoModelForCausalLM).from_pretrained("./final_model")
    tokenizer = AutoTokenizer.from_pretrained("./final_model")
    inputs = tokenizer("the good ant", return_tensors="pt")
    trained = trainer.model.eval()
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, trained(**inputs).logits, atol=1e-6)


SOME = """
from strop import SomeTrainer, SomeConfig
from peft import LoraConfig

trainer = SomeTrainer(
    model="model_id",  # or PreTrainedModel instance
    args=SomeConfig(
        output_dir="./output",
        learning_rate=1e-6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        bf16=True,
        gradient_checkpointing=True,
    ),
    train_dataset=dataset,
    peft_config=LoraConfig(...),  # Optional LoRA
)
trainer.train()
"""


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
def test_what_all_trainers_support(method: Any, run_script: Script) -> None:
    task = {"reward": "SEQ_CLS", "prm": "TOKEN_CLS"}.get(method.verb, "CAUSAL_LM")
    text = SOME.replace("Some", method.prefix).replace("...", f'r=4, target_modules="all-linear", task_type="{task}"')
    extra = {"gkd": 'teacher_model="large_aligned_model"'}.get(method.verb, "")
    if method.verb in ("ppo", "grpo", "rloo", "online-dpo", "nash-md"):
        extra = 'reward_funcs="reward_model_id"'
    if extra:
        text = text.replace("    train_dataset", f"    {extra},\n    train_dataset")
    text = text.replace("bf16=True,", "bf16=True,\n        max_steps=1,")
    trainer = run_script(text, dataset=data(method.verb, 6))["trainer"]
    assert trainer.state.global_step == 1
    trained = {name for name, p in trainer.policy.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name or "modules_to_save" in name for name in trained)
    trainer.save_model("./final_model")
    assert (Path("final_model") / "adapter_model.safetensors").is_file()
    labels = {"num_labels": 1} if method.verb == "reward" else {}  # the base model's config knows no score head
    reloaded = HEADS.get(method.verb, AutoModelForCausalLM).from_pretrained("./final_model", **labels)
    assert any("lora" in name for name, _ in reloaded.named_parameters())


SAVING_AND_LOADING = """
# Save
trainer.save_model("./final_model")

# Load for inference
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("./final_model")
"""


def test_saving_and_loading(run_script: Script) -> None:
    first = run_script(ORPO, preference_dataset=data("orpo"))
    text = SAVING_AND_LOADING
    scope = run_script(text, trainer=first["trainer"])
    ids = torch.tensor([[10, 11, 12]])
    generated = scope["model"].generate(ids, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > 3 and torch.equal(generated[:, :3], ids)


def test_an_adapter_loads_with_peft_and_merges(run_script: Script, models: dict[str, str]) -> None:
    config = strop.DPOConfig(max_steps=2, learning_rate=1e-2, report_to="none")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = strop.DPOTrainer(models["model_id"], args=config, train_dataset=data("dpo"), peft_config=lora)
    trainer.train()
    trainer.save_model("./final_model")
    ids = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(models["model_id"])
        plain = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, "./final_model")
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(plain, expected, atol=1e-3)
        merged = AutoPeftModelForCausalLM.from_pretrained("./final_model").merge_and_unload()
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
