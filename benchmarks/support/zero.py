"""DeepSpeed on two processes, under each stage of ZeRO: the weights of one process, and runs that are gone on with.

DeepSpeed may live in an environment of its own, whose Python the environment variable STROP_DEEPSPEED_PYTHON names.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.support.geometry import MAX_NORM, ROWS_PER_STEP, record_run
from tests.support.resume import SaveAt, cut_off, digest, leaves, run_of

from benchmarks.support.outcomes import ABSENT, BOUND_FLOAT32, RIGHT, VERBS, Found, attempt, close
from strop.errors import CheckpointError
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

ON_CPUS = {"use_cpu": False, "ddp_backend": "gloo", "max_grad_norm": MAX_NORM}
CUT_FOR_TWO, CUT = "ZeRO cut for 2 processes, and this run has 1", "an optimizer that DeepSpeed cut"
"""What one process says of a checkpoint of two: under DeepSpeed, and without it."""


def weights_of_one(folder: Path, *, stage: int) -> Found:
    """Weights after an epoch under DeepSpeed on two processes, against one process without it, in float32."""
    if isinstance(told := launched("weights", folder, stage, 2), str):
        return dict.fromkeys(VERBS, told)
    found = {}
    for verb, weights in told.items():
        whole = attempt(partial(record_run, verb, folder / "one" / verb, 2, 4, dtype=torch.float32))
        said = next((word for word in (weights, whole) if isinstance(word, str)), None)
        gap = 0.0 if said else max(float((whole.weights[n] - w).abs().max()) for n, w in weights.items())
        found[verb] = said or close({"tensors": gap, "steps": 0}, BOUND_FLOAT32)
    return found


def resumes(folder: Path, *, stage: int) -> Found:
    """Two processes go on with their own run to the same bytes; one process is refused by name."""
    found = dict.fromkeys(VERBS, RIGHT)
    for work, processes in (("resume", 2), ("fewer", 1), ("plain", 1)):
        told = launched(work, folder, stage, processes)
        for verb in VERBS:
            said = told if isinstance(told, str) else told[verb]
            if found[verb] == RIGHT and said != RIGHT:
                found[verb] = f"{work}: {said}"
    return found


def launched(work: str, folder: Path, stage: int, processes: int) -> Any:
    """What the first of so many processes under DeepSpeed left of `WORKS[work]`; in words, why nothing."""
    if (python := os.environ.get("STROP_DEEPSPEED_PYTHON")) is None:
        return ABSENT.format("DeepSpeed", "STROP_DEEPSPEED_PYTHON")
    settings = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "gradient_clipping": 0.05,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage, "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,  # else small weights stay whole
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zero.json").write_text(json.dumps(settings))
    environment = {
        **os.environ, "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": str(work != "plain").lower(),
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "zero.json"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [python, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(29600 + stage), "-m", "benchmarks.support.zero", work, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not (left := folder / f"{work}.pt").exists():
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        return f"not run here: DeepSpeed did not start ({last})"
    return torch.load(left, weights_only=False)


def rank(work: str, folder: str) -> None:
    """One of the processes; the first leaves what came of every method in a file."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    found = {}
    for verb in VERBS:
        unset_hf_deepspeed_config()  # of the run before: the model would be made in shards, with other random weights
        found[verb] = attempt(partial(WORKS[work], verb, Path(folder)))
    if os.environ["RANK"] == "0":
        torch.save(found, f"{folder}/{work}.pt")


def weights(verb: str, folder: Path) -> dict[str, torch.Tensor]:
    """The whole weights after the run of `record_run`."""
    group = {"num_generations": 2} if verb in ("grpo", "rloo", "online-dpo") else {}
    made = make_trainer(
        verb, folder / "two" / verb, rows=rows_for(verb, ROWS_PER_STEP + 1), dtype=torch.float32,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2, optim="sgd",
        **ON_CPUS, **group,
    )  # fmt: skip
    trainer = fix_rollouts(made)
    trainer.train()
    return whole_weights(trainer)


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    import deepspeed

    weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    shards = [weight for weight in weights.values() if hasattr(weight, "ds_id")]
    with deepspeed.zero.GatheredParameters(shards, enabled=bool(shards)):
        return {name: weight.detach().float().clone() for name, weight in weights.items()}


def resume(verb: str, folder: Path) -> str:
    """Whether two processes go on from their checkpoint as if nobody had stopped them."""
    place = folder / verb
    whole = facts_of(verb, place / "whole")
    if os.environ["RANK"] == "0":
        cut_off(place / "whole", 1, place / "again")
    torch.distributed.barrier()
    again = facts_of(verb, place / "again", resume_from_checkpoint=True)
    odd = [name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name)]
    return f"fails: {sorted(odd)[0]} differs ({len(odd)} facts do)" if odd else RIGHT


def facts_of(verb: str, folder: Path, **how: Any) -> dict[str, str]:
    """Hashes of weights, of what the method keeps, and of the logged lines, after a run with a checkpoint at step 1."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    trainer = run_of(verb, folder, {"max_steps": 3, "logging_steps": 1, **ON_CPUS})
    trainer.add_callback(SaveAt([1]))
    trainer.train(**how)
    facts = {f"weight {name}": weight for name, weight in whole_weights(trainer).items()}
    facts |= dict(leaves(trainer.extra_state(), "kept"))
    for line in trainer.state.log_history:
        if "loss" in line:
            assert math.isfinite(line["loss"])
            own = {name: line[name] for name in ("loss", "grad_norm", "reward", "learning_rate") if name in line}
            facts |= {f"{name} of step {line['step']}": value for name, value in own.items()}
    return {name: digest(value) for name, value in facts.items()}


def refused(verb: str, folder: Path, *, said: str) -> str:
    """Whether one process names what it cannot go on from, before it computes anything."""
    trainer = run_of(verb, folder / verb / "again", {"max_steps": 3, **ON_CPUS, "use_cpu": said == CUT})
    computed: list[int] = []
    trainer.model.register_forward_pre_hook(lambda *given: computed.append(1))
    try:
        trainer.train(resume_from_checkpoint=str(folder / verb / "whole" / "checkpoint-1"))
    except CheckpointError as error:
        return RIGHT if said in str(error) and not computed else f"fails: {len(computed)} passes, then {error}"
    return "fails: it went on"


WORKS: dict[str, Any] = {
    "weights": weights,
    "resume": resume,
    "fewer": partial(refused, said=CUT_FOR_TWO),
    "plain": partial(refused, said=CUT),
}

if __name__ == "__main__":
    rank(*sys.argv[1:3])
