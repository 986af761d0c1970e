"""FSDP2 on CPUs: accelerate's own path, of which only its refusal of machines without an accelerator is passed over.

What runs is what `accelerate launch` with an FSDP2 config runs on GPUs: its plugin from the environment, and shards
over gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from strop.engine.sharding import whole
from strop.errors import ConfigError
from strop.records import Want
from strop.scripts.averaging import BEMACallback
from strop.testing.cases import make_trainer, rows_for
from tests.support.geometry import Run, record_runs
from tests.support.resume import on_two_ranks, run_of

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def pass_over_refusal() -> None:
    """From now on this process tells accelerate that its ranks are on accelerators."""
    os.environ.update(ENVIRONMENT)
    made = PartialState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init  # type: ignore[method-assign]


def on_shards(runs: Sequence[Run], folder: str) -> list[Any]:
    """`record_runs` on one of two ranks, of models in shards."""
    pass_over_refusal()
    return record_runs(runs, folder, 2, 2)


def go_on_in_shards(runs: Sequence[tuple[str, dict[str, Any], int]], folder: str) -> list[Any]:
    """`on_two_ranks`, of models in shards."""
    pass_over_refusal()
    return on_two_ranks(runs, folder)


def facts_of_shards(folder: str) -> dict[str, Any]:
    """What one of two ranks holds, samples, leaves out and refuses."""
    pass_over_refusal()
    trainer = run_of("dpo", f"{folder}/dpo", {"max_steps": 1, "on_nonfinite": "skip", "optim": "sgd"})
    before = trainer.shards.model.state_dict()
    before = {name: tensor.full_tensor() for name, tensor in before.items() if isinstance(tensor, DTensor)}
    if trainer.args.process_index == 1:
        loss, trainer.loss = trainer.loss, lambda *args: _spoilt(loss(*args))
    trainer.train()
    after = trainer.policy.state_dict()
    found = {"held": [share_of(trainer.policy), share_of(trainer.reference.model)]}
    found["moved"] = [name for name, tensor in before.items() if not torch.equal(tensor, after[name].full_tensor())]
    trainer.save_model(f"{folder}/saved")
    found |= {"weights": before, "put back": put_back(trainer)} | sampled(folder)
    found["averaged"], found["not learned"] = averaged(folder), not_learned(folder)
    for name, make in refused(folder).items():
        try:
            make()
        except ConfigError as error:
            found[name] = str(error)
    return found


def put_back(trainer: Any) -> float:
    """By how much weights differ from those that were written into the whole model."""
    with trainer.gathered(put_back=True):
        for number, weight in enumerate(trainer.model.parameters()):
            weight.data.fill_(float(number))
    found = trainer.policy.named_parameters()
    return max(float((whole(weight.detach()) - number).abs().max()) for number, (_, weight) in enumerate(found))


def averaged(folder: str) -> dict[str, torch.Tensor]:
    """What `BEMACallback` must save: theta + alpha (theta - theta_0), where its average is the last weights."""
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "dtype": torch.float64}
    trainer = run_of("sft", f"{folder}/averaged", settings)
    trainer.add_callback(BEMACallback(update_freq=1, min_ema_multiplier=1.0))
    start = {name: whole(weight.detach()).clone() for name, weight in trainer.policy.named_parameters()}
    trainer.train()
    end = {name: whole(weight.detach()) for name, weight in trainer.policy.named_parameters()}
    return {name: end[name] + 12**-0.2 * (end[name] - start[name]) for name in start}


def not_learned(folder: str) -> list[str]:
    """The weights that a run does not move which evaluated before it trained, when they were frozen."""
    trainer = run_of("sft", f"{folder}/evaluated", {"max_steps": 2, "learning_rate": 0.1, "eval": True})
    before = {name: whole(weight.detach()).clone() for name, weight in trainer.policy.named_parameters()}
    trainer.policy.requires_grad_(False)
    trainer.evaluate()
    trainer.policy.requires_grad_(True)
    with torch.no_grad():
        trainer.model(input_ids=torch.tensor([[1, 2, 3]]))
    trainer.train()
    after = dict(trainer.policy.named_parameters())
    return [name for name, weight in before.items() if torch.equal(whole(after[name].detach()), weight)]


def sampled(folder: str) -> dict[str, Any]:
    """What engine samples, and what it and the policy in shards say of its samples."""
    settings = {"num_generations": 2, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    trainer = make_trainer("grpo", f"{folder}/grpo", rows=rows_for("grpo", 4), **settings)
    groups = trainer.rollout([trainer.train_dataset[trainer.args.process_index]], 2, training=False)
    batch = trainer.build([group.tree() for group in groups])
    with torch.no_grad():
        own = trainer.score_with(trainer.model, batch, Want.LOGPS).logps
    said = torch.tensor([logp for group in groups for logps in group.sampler_logps for logp in logps])
    return {"engine": trainer.generator.name, "own": own, "said": said}


def refused(folder: str) -> dict[str, Callable[[], Any]]:
    settings = {"ddp_backend": "gloo"}
    adapted = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    biased = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], bias="all")}
    return {
        "optimizer": lambda: make_trainer(
            "sft", f"{folder}/adafactor", rows=rows_for("sft", 4), optim="adafactor", **settings
        ),
        "biases": lambda: make_trainer(
            "dpo", f"{folder}/bias", rows=rows_for("dpo", 4), arch="qwen2", trainer=biased, **settings
        ),
        "opponent": lambda: make_trainer(
            "nash-md", f"{folder}/nash", rows=rows_for("nash-md", 4), trainer=adapted, **settings
        ),
    }


def share_of(model: torch.nn.Module) -> float:
    """The share of the weights that this rank holds between two passes."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
    return held / sum(p.numel() for p in model.parameters())


def _spoilt(output: Any) -> Any:
    for term in output.terms:
        term.values = term.values * float("nan")
    return output
