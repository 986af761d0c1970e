"""FSDP2 over two gloo processes: what one process learns, saves and goes on with, though no rank holds the model.

accelerate's own path runs, of which only its refusal of CPUs is passed over (`tests/support/sharded.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.engine.test_resume_ranks import check, everything
from tests.support.geometry import Run, differences, record_run
from tests.support.processes import run_ranks
from tests.support.sharded import facts_of_shards, go_on_in_shards, on_shards
from transformers import AutoModelForCausalLM

ADAPTED = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
LORA = {"trainer": {"peft_config": LoraConfig(**ADAPTED)}}
TRAINED_LORA = {"trainer": {"peft_config": LoraConfig(**ADAPTED, init_lora_weights=False)}}
SCORED_LORA = {"trainer": {"peft_config": LoraConfig(**ADAPTED, task_type="SEQ_CLS")}}
RUNS: list[Run] = [
    ("sft", {"gradient_checkpointing": True, "max_tokens_per_micro_batch": 40}),  # unequal numbers of micro-batches
    ("dpo", {"num_train_epochs": 2}),  # a second time the reference knows other rows on each rank
    ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 1}),
    ("kto", {}),
    ("reward", {}),
    ("grpo", {"beta": 0.1}),
    ("ppo", {}),
    ("gkd", {"lmbda": 0.5}),
]
MORE: list[Run] = [
    *((verb, {}) for verb in ("orpo", "cpo", "bco", "prm", "rloo", "online-dpo", "nash-md", "xpo-online")),
    ("nash-md", {"sync_ref_model": True, "ref_model_sync_steps": 1}),  # whole, beside a policy in shards
    *(("dpo", lora) for lora in (LORA, TRAINED_LORA)),
    ("dpo", {**TRAINED_LORA, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}),
    ("reward", SCORED_LORA),
    ("ppo", LORA),
    ("grpo", {"beta": 0.1, "top_k": 5}),  # the output layer is read beside the forward pass
    ("ppo", {"top_k": 5, "num_iterations": 2}),
]
GOES_ON: dict[str, Any] = {"optim": "adamw_torch", "adam_epsilon": 1e-4}


def unequal(runs: list[Run], folder: Path) -> dict[str, dict[str, float]]:
    """What two ranks with shards learned otherwise than one process, by run."""
    ranks = run_ranks(on_shards, 2, folder / "ranks", runs, str(folder), seconds=400)
    found = {}
    for index, (verb, options) in enumerate(runs):
        one = record_run(verb, folder / f"one-{index}", 4, 2, **options)
        gaps = [differences(one, rank[index]) for rank in ranks]
        found[f"{verb} {' '.join(options)}"] = {
            name: gap for each in gaps for name, gap in each.items() if gap > (1e-6 if name == "loss" else 1e-10)
        }
    return found


def test_shards_learn_what_one_process_does(tmp_path: Path) -> None:
    assert {run: gaps for run, gaps in unequal(RUNS, tmp_path).items() if gaps} == {}


@pytest.mark.slow
def test_other_methods_and_adapters_in_shards(tmp_path: Path) -> None:
    assert {run: gaps for run, gaps in unequal(MORE, tmp_path).items() if gaps} == {}


def test_what_shards_hold_sample_save_and_refuse(tmp_path: Path) -> None:
    ranks = run_ranks(facts_of_shards, 2, tmp_path / "ranks", str(tmp_path), seconds=200)
    for rank in ranks:
        assert max(rank["held"]) < 0.6, "policy or reference is not cut"
        assert rank["moved"] == [], "the other rank's loss was not finite"
        assert rank["engine"] == "native"
        assert torch.allclose(rank["own"].float(), rank["said"].float(), atol=1e-5)
        assert "beside the adapter" in rank["biases"] and "opponent" in rank["opponent"]
        assert "optim='adafactor'" in rank["optimizer"], "it cannot step weights in shards"
        assert rank["put back"] == 0, "weights that were written into the whole model are lost"
        assert rank["not learned"] == [], "an evaluation before training left weights gathered, which are no shards"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(saved[name], weight.to(saved[name].dtype)) for name, weight in ranks[0]["weights"].items())
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "averaged" / "bema", dtype=torch.float64).state_dict()
    assert all(torch.allclose(kept[name], mean, atol=1e-12) for name, mean in ranks[0]["averaged"].items())


@pytest.mark.slow
def test_shards_and_one_process_go_on_with_each_others_runs(tmp_path: Path) -> None:
    synced = {"sync_ref_model": True, "ref_model_sync_steps": 2}
    runs = [(verb, {**GOES_ON, **more}, 3) for verb in ("dpo", "ppo") for more in ({}, {"lora": 0.0})]
    runs.append(("dpo", {**GOES_ON, **synced}, 3))
    mixture = {"arch": "qwen3_moe", "router_aux_loss_coef": 0.0}  # its load is balanced by micro-batch
    runs += [(verb, {**GOES_ON, **mixture}, 3) for verb in ("sft", "ppo")]
    for result in everything(runs, tmp_path, go_on_in_shards):
        check(result)
