"""How far each method reaches: processes, shards, streams, resumes, other engines; a column for all methods at once.

"right" means: two processes and shards have the gradients and weights of one process on the same rows, in float64; a
resumed run has the bytes of the run that was never stopped, and on another number of processes its weights; what
samples elsewhere took its steps. DeepSpeed and vLLM may live in environments of their own, whose Pythons the
environment variables STROP_DEEPSPEED_PYTHON and STROP_VLLM_PYTHON name.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.support.geometry import MAX_NORM, ROWS_PER_STEP, Steps, differences, record_run
from tests.support.processes import run_ranks
from tests.support.resume import cut_off, largest_gap, on_two_ranks, record, run_of, unlike

from strop.methods.registry import METHODS
from strop.testing.cases import make_trainer, rows_for, samples
from strop.testing.rollouts import fix_rollouts

VERBS = [method.verb for method in METHODS]
RIGHT = "right"
BOUND, BOUND_FLOAT32 = 1e-9, 1e-4
EXACT = {"dtype": torch.float64, "fixed": True, "optim": "sgd", "learning_rate": 1e-2, "max_steps": 3}
ABSENT = "not run here: no Python with {} was named by {}"
Found = dict[str, str]
"""Verb -> "right", a refusal, what fails, or why it was not run."""


def attempt(work: Callable[[], Any]) -> Any:
    """What the work gives, or the first words of what it raises."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def one_process(folder: Path) -> Found:
    found = {}
    for verb in VERBS:
        steps = attempt(partial(record_run, verb, folder / verb, 2, 4))
        learned = isinstance(steps, Steps) and len(steps.gradients) >= 2
        found[verb] = RIGHT if learned else steps if isinstance(steps, str) else "fails: no two steps"
    return found


def rank_of(folder: str, sharded: bool) -> dict[str, Any]:
    """One of two ranks: the runs of all methods."""
    if sharded:
        from tests.support.sharded import pass_over_refusal

        pass_over_refusal()
    return {verb: attempt(partial(record_run, verb, f"{folder}/{verb}", 2, 2)) for verb in VERBS}


def two_processes(folder: Path, *, sharded: bool = False) -> Found:
    if sharded and importlib.util.find_spec("tests.support.sharded") is None:
        return dict.fromkeys(VERBS, "not run here: shards on CPUs need tests/support/sharded.py")
    first, _ = run_ranks(rank_of, 2, folder / "ranks", str(folder / "two"), sharded, seconds=1500)
    found = {}
    for verb, steps in first.items():
        whole = attempt(partial(record_run, verb, folder / "one" / verb, 2, 4))
        said = next((word for word in (steps, whole) if isinstance(word, str)), None)
        found[verb] = said or close(differences(whole, steps), BOUND)
    return found


def close(gaps: Mapping[str, float], bound: float) -> str:
    gap = max(gaps["tensors"], gaps["steps"])
    return RIGHT if gap <= bound else f"fails: gradients or weights differ by {gap:.0e}"


def two_steps(make: Callable[[], Any]) -> str:
    """Whether a trainer takes two steps with finite losses; its engine is ended."""
    trainer = make()
    loss = trainer.train().training_loss
    if hasattr(trainer, "generator"):
        trainer.generator.close()
    return RIGHT if trainer.state.global_step == 2 and math.isfinite(loss) else f"fails: loss {loss}"


def streaming(folder: Path) -> Found:
    settings = {"stream": True, "fixed": True, "max_steps": 2}
    return {verb: attempt(partial(two_steps, partial(run_of, verb, folder / verb, settings))) for verb in VERBS}


def resume(folder: Path) -> Found:
    def stopped(verb: str) -> str:
        whole = record(verb, folder / verb / "whole", {"max_steps": 3}, save_at=[1])
        place = cut_off(folder / verb / "whole", 1, folder / verb / "again")
        odd = unlike(whole, record(verb, place, {"max_steps": 3}, resume=True), 1)
        return f"fails: {odd[0]} differs" if odd else RIGHT

    return {verb: attempt(partial(stopped, verb)) for verb in VERBS}


def rank_resumed(folder: str) -> dict[str, Any]:
    """One of two ranks: every method goes on from what one process left."""
    return {verb: attempt(partial(on_two_ranks, [(verb, EXACT, 1)], f"{folder}/{verb}")) for verb in VERBS}


def resume_elsewhere(folder: Path) -> Found:
    wholes = {}
    for verb in VERBS:
        wholes[verb] = attempt(partial(record, verb, folder / verb / "0-whole", EXACT, save_at=[1]))
        if not isinstance(wholes[verb], str):
            cut_off(folder / verb / "0-whole", 1, folder / verb / "0-one")
    first, _ = run_ranks(rank_resumed, 2, folder / "ranks", str(folder), seconds=1500)
    found = {}
    for verb, records in first.items():
        said = next((word for word in (records, wholes[verb]) if isinstance(word, str)), None)
        found[verb] = said or close({"tensors": largest_gap(wholes[verb], records[0]["from one"]), "steps": 0}, BOUND)
    return found


def sampled(folder: Path, **settings: Any) -> Found:
    """Two steps whose completions come from elsewhere; a method that samples nothing refuses the settings."""

    return {verb: attempt(partial(two_steps, partial(sampling, verb, folder / verb, **settings))) for verb in VERBS}


def sampling(verb: str, folder: Path, **settings: Any) -> Any:
    """A trainer that is to take two steps."""
    own = {"num_generations": 2} if verb in ("grpo", "rloo") else {}
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "dtype": torch.float32, **own, **settings}
    return make_trainer(verb, folder, rows=rows_for(verb, 8), **options)


def with_ray(folder: Path) -> Found:
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        return sampled(folder, engine="ray", ray_workers=1, ray_timeout=300.0)
    finally:
        ray.shutdown()


def zero(folder: Path, *, stage: int) -> Found:
    """Weights after an epoch under DeepSpeed on two processes, against one process without it, in float32."""
    python = os.environ.get("STROP_DEEPSPEED_PYTHON")
    if python is None:
        return dict.fromkeys(VERBS, ABSENT.format("DeepSpeed", "STROP_DEEPSPEED_PYTHON"))
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
        **os.environ, "DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "zero.json"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(29600 + stage)]
    done = subprocess.run([*command, "-m", "benchmarks.support.reach", "zero", str(folder)], env=environment,
                          capture_output=True, text=True)  # fmt: skip
    if not (folder / "weights.pt").exists():
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        return dict.fromkeys(VERBS, f"not run here: DeepSpeed did not start ({last})")
    found = {}
    for verb, weights in torch.load(folder / "weights.pt", weights_only=False).items():
        options = {"dtype": torch.float32}
        whole = attempt(partial(record_run, verb, folder / "one" / verb, 2, 4, **options))
        said = next((word for word in (weights, whole) if isinstance(word, str)), None)
        gap = 0.0 if said else max(float((whole.weights[n] - w).abs().max()) for n, w in weights.items())
        found[verb] = said or close({"tensors": gap, "steps": 0}, BOUND_FLOAT32)
    return found


def rank_of_zero(folder: str) -> None:
    """One of two ranks under DeepSpeed; the first leaves the weights of all runs in a file."""
    found = {verb: attempt(partial(weights_of_zero, verb, f"{folder}/two/{verb}")) for verb in VERBS}
    if os.environ["RANK"] == "0":
        torch.save(found, f"{folder}/weights.pt")


def weights_of_zero(verb: str, folder: str) -> dict[str, torch.Tensor]:
    """The whole weights after the run of `record_run`."""
    import deepspeed
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # of the run before: the model would be made in shards, with other random weights
    group = {"num_generations": 2} if verb in ("grpo", "rloo", "online-dpo") else {}
    made = make_trainer(
        verb, folder, rows=rows_for(verb, ROWS_PER_STEP + 1), dtype=torch.float32, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, max_grad_norm=MAX_NORM, learning_rate=1e-2, optim="sgd", use_cpu=False,
        ddp_backend="gloo", **group,
    )  # fmt: skip
    trainer = fix_rollouts(made)
    trainer.train()
    weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    shards = [weight for weight in weights.values() if hasattr(weight, "ds_id")]
    with deepspeed.zero.GatheredParameters(shards, enabled=bool(shards)):
        return {name: weight.detach().float().clone() for name, weight in weights.items()}


def with_vllm(folder: Path) -> Found:
    """In the Python that has vLLM, one engine in the training process after another."""
    python = os.environ.get("STROP_VLLM_PYTHON")
    absent = ABSENT.format("vLLM", "STROP_VLLM_PYTHON")
    refused = sampled(folder, engine="vllm", vllm_mode="server", vllm_server_timeout=1.0)
    found = {verb: word if not samples(verb) or "opponent" in word else absent for verb, word in refused.items()}
    for verb in [verb for verb, word in found.items() if python and word == absent]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if "site-packages" not in p),
                       "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
        command = [str(python), "-m", "benchmarks.support.reach", "vllm", str(folder / verb), verb]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = [line[2:] for line in done.stdout.splitlines() if line.startswith("@@")]
        found[verb] = said[0] if said else f"fails: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
    return found


def one_with_vllm(folder: str, verb: str) -> str:
    from strop.testing.tiny import tiny_model
    from strop.testing.tokenizers import toy_tokenizer

    shape = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    size = {"vocab_size": len(toy_tokenizer("plain")), "tie_word_embeddings": True}
    model = tiny_model("llama", dtype=torch.float32, **shape, **size)
    return two_steps(partial(sampling, verb, Path(folder), model=model, engine="vllm", vllm_max_model_length=256))


COLUMNS: dict[str, Callable[[Path], Found]] = {
    "one process": one_process,
    "2 processes": two_processes,
    "FSDP2": partial(two_processes, sharded=True),
    "ZeRO-1": partial(zero, stage=1),
    "ZeRO-2": partial(zero, stage=2),
    "ZeRO-3": partial(zero, stage=3),
    "streaming": streaming,
    "resume": resume,
    "resume on 2 processes": resume_elsewhere,
    "vLLM": with_vllm,
    "overlap": partial(sampled, max_staleness=1),
    "parts of a step": partial(sampled, stream_prompts=2),
    "Ray": with_ray,
}


def reaches() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Subject -> what measures it: a column of the table."""
    return {
        f"reach | {name}": lambda folder, column=column: {"found": column(folder)} for name, column in COLUMNS.items()
    }


if __name__ == "__main__":
    if sys.argv[1] == "zero":
        rank_of_zero(sys.argv[2])
    else:
        print("@@" + str(attempt(partial(one_with_vllm, *sys.argv[2:4]))), flush=True)
