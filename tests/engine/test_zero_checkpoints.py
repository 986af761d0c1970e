"""A checkpoint whose optimizer DeepSpeed cut is gone on with by the run that can read it, and by no other."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from tests.support.cut_weights import cut_weights
from tests.support.resume import record, run_of
from torch import nn

from strop.engine.sharding import check_shards
from strop.engine.zero_checkpoints import check_goes_on
from strop.errors import CheckpointError, ConfigError
from strop.model.actor_critic import VALUE_FOLDER


def leave_states(folder: Path, ranks: int) -> None:
    """What ZeRO leaves of the optimizer."""
    (folder / "global_step1").mkdir(parents=True)
    for rank in range(ranks):
        (folder / "global_step1" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()


@pytest.mark.parametrize("accumulation", [2, 1])
def test_a_run_without_deepspeed_does_not_begin_with_a_fresh_optimizer(accumulation, tmp_path):
    """And is not told first to change the rows of a step, which would not help it."""
    record("sft", tmp_path, {"max_steps": 2}, save_at=[1])
    leave_states(tmp_path / "checkpoint-1", 2)
    settings = {"max_steps": 2, "gradient_accumulation_steps": accumulation}
    with pytest.raises(CheckpointError, match=r"an optimizer that DeepSpeed cut.*model=that folder"):
        run_of("sft", tmp_path, settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("ranks", "said"), [(0, "written without DeepSpeed"), (2, "for 2 processes, and this run has 4")]
)
def test_deepspeed_says_which_checkpoints_it_cannot_read(ranks, said, tmp_path):
    if ranks:
        leave_states(tmp_path, ranks)
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, num_processes=4)
    with pytest.raises(CheckpointError, match=said):
        check_goes_on(tmp_path, accelerator)


@pytest.mark.parametrize("ranks", [0, 4])
def test_deepspeed_goes_on_from_its_own(ranks, tmp_path):
    """Of stage 0 too, which leaves no state by rank."""
    leave_states(tmp_path, ranks)
    check_goes_on(tmp_path, SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, num_processes=4))


def test_a_critic_beside_weights_that_are_not_gathered_for_saving():
    """Its run would leave two models without weights."""
    accelerator, state = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED), SimpleNamespace()
    accelerator.state, state.deepspeed_plugin = state, SimpleNamespace(zero_stage=3)
    plain = {"optim": "adamw_torch", "adapted": False}
    for gathered in (True, False):
        asked = {"stage3_gather_16bit_weights_on_model_save": gathered}
        state.deepspeed_plugin.deepspeed_config = {"zero_optimization": asked}
        check_shards(accelerator, nn.Linear(1, 1), None, **plain, with_critic=False)
        refused = (
            nullcontext() if gathered else pytest.raises(ConfigError, match="stage3_gather_16bit_weights_on_model")
        )
        with refused:
            check_shards(accelerator, nn.Linear(1, 1), None, **plain, with_critic=True)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_policy_and_critic_are_saved_from_the_weights_that_were_gathered(lora, tmp_path):
    """ZeRO-3 leaves nothing of the weights in the modules while a checkpoint is written."""
    trainer = run_of("ppo", tmp_path, {"lora": 0.0} if lora else {})
    whole = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for parameter in trainer.model.parameters():
        parameter.data = torch.empty(0)
    trainer._save(str(tmp_path / "saved"), state_dict=whole)
    for part, folder in (("policy", tmp_path / "saved"), ("critic", tmp_path / "saved" / VALUE_FOLDER)):
        saved = {name: w for path in folder.glob("*.safetensors") for name, w in load_file(path).items()}
        own = [tensor for name, tensor in whole.items() if name.startswith(f"{part}.") and (not lora or "lora" in name)]
        assert len(saved) >= len(own) > 0
        assert all(any(torch.equal(w, tensor) for tensor in saved.values()) for w in own)


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_cut_weights_are_those_of_the_checkpoint_of_a_run_that_has_ended(verb, tmp_path, monkeypatch):
    """A trainer that has trained finds nothing left to train, and its model is cut by then."""
    trainer = run_of(verb, tmp_path, {"arch": "qwen3_moe"})
    trainer.save_model(str(tmp_path / "saved"))
    saved = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    weights = cut_weights(trainer.model, monkeypatch)
    for tensor in weights.values():
        tensor.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "saved"))
    assert not any(parameter.numel() for parameter in trainer.model.parameters())
    assert all(torch.equal(one, own) for one, own in zip(weights.values(), saved, strict=True))


def test_weights_that_lie_in_shards_alone_are_read_from_them(tmp_path, monkeypatch):
    """ZeRO-3 gathers none for a checkpoint by itself; a run that has ended there could not be asked for again."""
    trainer = run_of("sft", tmp_path, {})
    leave_states(tmp_path / "left", 2)
    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", None)
    with pytest.raises(CheckpointError, match=r"which is not installed.*zero_to_fp32\.py"):
        trainer._load_from_checkpoint(str(tmp_path / "left"))
    whole = {name: torch.ones_like(tensor) for name, tensor in trainer.model.state_dict().items()}
    reader = SimpleNamespace(get_fp32_state_dict_from_zero_checkpoint={str(tmp_path / "left"): whole}.__getitem__)
    for name in ("deepspeed", "deepspeed.utils"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[], __spec__=SimpleNamespace()))
    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", reader)
    trainer._load_from_checkpoint(str(tmp_path / "left"))
    assert all((parameter == 1).all() for parameter in trainer.model.parameters())


def test_weights_that_are_frozen_in_the_middle_of_a_run_of_deepspeed_are_named(tmp_path):
    """Its optimizer would go on moving them; what is changed between two runs is nothing to it."""
    trainer = run_of("sft", tmp_path, {})
    trainer.is_deepspeed_enabled, (name, weight) = True, next(iter(trainer.policy.named_parameters()))
    for made in ("one", "another"):
        trainer.optimizer = made
        with trainer.gradient_exchange(trainer.model.train(), last=True):
            weight.requires_grad = False
        with trainer.gradient_exchange(trainer.model.eval(), last=True):  # an evaluation
            pass
        with (
            pytest.raises(ConfigError, match=rf"1 weights were frozen.*{name}.*before train"),
            trainer.gradient_exchange(trainer.model.train(), last=True),
        ):
            pass
        weight.requires_grad = True
