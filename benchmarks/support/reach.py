"""How far each method reaches: processes, shards, streams, resumes, other engines; a column for all methods at once.

"right" means: two processes and shards have the gradients and weights of one process on the same rows, in float64; a
resumed run has the bytes of the run that was never stopped, and on another number of processes its weights; what
samples elsewhere took its steps. DeepSpeed and vLLM may live in environments of their own, whose Pythons the
environment variables STROP_DEEPSPEED_PYTHON and STROP_VLLM_PYTHON name.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.support.geometry import Steps, differences, record_run
from tests.support.processes import run_ranks
from tests.support.resume import cut_off, largest_gap, on_two_ranks, record, run_of, unlike

from benchmarks.support import zero
from benchmarks.support.outcomes import ABSENT, BOUND, RIGHT, VERBS, Found, attempt, close
from strop.testing.cases import make_trainer, rows_for, samples
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

EXACT = {"dtype": torch.float64, "fixed": True, "optim": "sgd", "learning_rate": 1e-2, "max_steps": 3}


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


def with_ray(folder: Path, **settings: Any) -> Found:
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        return sampled(folder, engine="ray", ray_workers=1, ray_timeout=300.0, **settings)
    finally:
        ray.shutdown()


def refused_by_vllm(folder: Path) -> Found:
    """Methods that cannot sample with vLLM, and why; the others were not run."""
    absent = ABSENT.format("vLLM", "STROP_VLLM_PYTHON")
    refused = sampled(folder, engine="vllm", vllm_mode="server", vllm_server_timeout=1.0)
    return {verb: word if not samples(verb) or "opponent" in word else absent for verb, word in refused.items()}


def vllm_environment() -> dict[str, str]:
    """Of a process of the Python that has vLLM: strop from here, all else from there."""
    own = os.pathsep.join(path for path in sys.path if "site-packages" not in path)
    return {**os.environ, "PYTHONPATH": own, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def with_vllm(folder: Path) -> Found:
    """In the Python that has vLLM, one engine in the training process after another."""
    python, found = os.environ.get("STROP_VLLM_PYTHON"), refused_by_vllm(folder)
    for verb in [verb for verb, word in found.items() if python and word.startswith("not run here")]:
        command = [str(python), "-m", "benchmarks.support.reach", str(folder / verb), verb]
        done = subprocess.run(command, env=vllm_environment(), capture_output=True, text=True)
        said = [line[2:] for line in done.stdout.splitlines() if line.startswith("@@")]
        found[verb] = said[0] if said else f"fails: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
    return found


def one_with_vllm(folder: str, verb: str) -> str:
    settings = {"engine": "vllm", "vllm_max_model_length": 256}
    return two_steps(partial(sampling, verb, Path(folder), model=model_for_vllm(), **settings))


def model_for_vllm() -> Any:
    """A tiny Llama of a shape that vLLM takes."""
    shape = dict(hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    size = {"vocab_size": len(toy_tokenizer("plain")), "tie_word_embeddings": True}
    return tiny_model("llama", dtype=torch.float32, **shape, **size)


def ahead_on_a_server(folder: Path) -> Found:
    """With a server of the Python that has vLLM, which samples while the policy learns here."""
    python, found = os.environ.get("STROP_VLLM_PYTHON"), refused_by_vllm(folder)
    if python is None:
        return found
    for part in (model_for_vllm(), toy_tokenizer("plain")):
        part.save_pretrained(folder / "base")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "strop", "vllm-serve", "--model", str(folder / "base"), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    server = subprocess.Popen(command, env=vllm_environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    settings = {"vllm_mode": "server", "vllm_server_base_url": f"http://127.0.0.1:{port}", "max_staleness": 1}
    try:
        for verb in [verb for verb, word in found.items() if word.startswith("not run here")]:
            given = {"model": model_for_vllm(), "engine": "vllm", "vllm_server_timeout": 1200.0, **settings}
            found[verb] = attempt(partial(two_steps, partial(sampling, verb, folder / verb, **given)))
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    return found


COLUMNS: dict[str, Callable[[Path], Found]] = {
    "one process": one_process,
    "2 processes": two_processes,
    "FSDP2": partial(two_processes, sharded=True),
    "ZeRO-1": partial(zero.weights_of_one, stage=1),
    "ZeRO-2": partial(zero.weights_of_one, stage=2),
    "ZeRO-3": partial(zero.weights_of_one, stage=3),
    "streaming": streaming,
    "resume": resume,
    "resume on 2 processes": resume_elsewhere,
    "resume, ZeRO-2": partial(zero.resumes, stage=2),
    "vLLM": with_vllm,
    "overlap": partial(sampled, max_staleness=1),
    "overlap, vLLM server": ahead_on_a_server,
    "overlap, Ray": partial(with_ray, max_staleness=1),
    "parts of a step": partial(sampled, stream_prompts=2),
    "Ray": with_ray,
}


def reaches() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Subject -> what measures it: a column of the table."""
    return {
        f"reach | {name}": lambda folder, column=column: {"found": column(folder)} for name, column in COLUMNS.items()
    }


if __name__ == "__main__":
    print("@@" + str(attempt(partial(one_with_vllm, *sys.argv[1:3]))), flush=True)
