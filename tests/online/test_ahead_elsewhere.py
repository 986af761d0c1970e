"""Windows ahead with engines of other processes and machines: a real vLLM server, real Ray actors.

What wrote every token is asked of the weights themselves; runs must learn, end by name when what samples dies, and be
gone on with. Skipped where the package is not installed (docs/vllm.md, docs/several-processes.md).
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.rollout.test_vllm_real import SHAPE, start_server, stop
from transformers import TrainerCallback

from strop.errors import RolloutError
from strop.ray_cluster import answers
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
GROUPS = {"num_generations": 8, "per_device_train_batch_size": 32}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {**GROUPS, "beta": 0.0},
    "rloo": {**GROUPS, "beta": 0.0, "vllm_importance_sampling_mode": "sequence_truncate"},
    "ppo": {"per_device_train_batch_size": 64, "num_iterations": 1, "num_generations": 8, "vf_coef": 0.1},
    "online-dpo": {"per_device_train_batch_size": 16, "beta": 0.1},
    "gkd": {"per_device_train_batch_size": 8, "lmbda": 1.0, "num_generations": 1},
}
STEPS, DEATH = 16, 3
LEARNED = {"gkd": ("loss", -0.02)}
"""What must change, and by which share at least; of the others the reward goes up."""


class Vllm:
    """A server, and another one after it was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "base"
        tiny_model("llama", dtype=torch.float32, **shape()).save_pretrained(self.folder)
        toy_tokenizer("plain").save_pretrained(self.folder)
        self.server: SimpleNamespace | None = None

    def options(self) -> dict[str, Any]:
        if self.server is None:
            self.server = start_server(self.folder)
        server = {"vllm_server_base_url": self.server.url, "vllm_server_timeout": 240.0}
        return {"engine": "vllm", "vllm_mode": "server", **server}

    def kill(self, trainer: Any) -> None:
        assert self.server is not None
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait(20)
        self.server = None

    def close(self) -> None:
        if self.server is not None:
            stop(self.server.process)


class Ray:
    """Two actors, and another number of them in the run that goes on."""

    def __init__(self, folder: Path) -> None:
        import ray

        self.patch, self.ray, self.runs = pytest.MonkeyPatch(), ray, 0
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
        self.patch.setenv("PYTHONPATH", path)
        self.patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)

    def options(self) -> dict[str, Any]:
        self.runs += 1
        return {"engine": "ray", "ray_workers": 1 + self.runs % 2, "ray_timeout": 240.0 + self.runs}

    def kill(self, trainer: Any) -> None:
        os.kill(answers([trainer.generator.actors[1].process_id.remote()], 60.0)[0], signal.SIGKILL)

    def close(self) -> None:
        self.ray.shutdown()
        self.patch.undo()


@pytest.fixture(scope="module", params=["vllm", "ray"])
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    made: Any = {"vllm": Vllm, "ray": Ray}[request.param](tmp_path_factory.mktemp(request.param))
    yield made
    made.close()


def shape() -> dict[str, Any]:
    return {**SHAPE, "vocab_size": len(toy_tokenizer("plain"))}


class Kept(TrainerCallback):
    """The weights at the beginning of every step, and the groups of every window that was learned from."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.weights, self.groups = trainer, {}, []
        finished = trainer.ahead.finished

        def kept(waited: Any) -> Any:
            self.groups.append((trainer.state.global_step, finished(waited)))
            return self.groups[-1][1]

        trainer.ahead.finished = kept

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        taken = {name: weight.detach().clone() for name, weight in self.trainer.policy.named_parameters()}
        self.weights[state.global_step] = taken


class Kill(TrainerCallback):
    """Kills what samples, at the end of a step."""

    def __init__(self, trainer: Any, elsewhere: Any) -> None:
        self.trainer, self.elsewhere = trainer, elsewhere

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == DEATH:
            self.elsewhere.kill(self.trainer)


def made(verb: str, folder: Path, elsewhere: Any, **options: Any) -> Any:
    """A run of `STEPS` steps, a window ahead, of a tiny model in float32."""
    rows = rows_for(verb, 24) if verb == "gkd" else [{"prompt": row["prompt"]} for row in rows_for("grpo", 24)]
    given = {"teacher_model": tiny_model("llama", dtype=torch.float32, seed=1, **shape())} if verb == "gkd" else {}
    steps = {"max_steps": STEPS, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2, **options}
    trainer = make_trainer(
        verb, folder, rows=rows, model=tiny_model("llama", dtype=torch.float32, seed=0, **shape()), trainer=given,
        dtype=torch.float32, max_staleness=1, max_completion_length=8, **METHODS[verb], **elsewhere.options(), **steps,
    )  # fmt: skip
    trainer.kept = Kept(trainer)
    trainer.add_callback(trainer.kept)
    return trainer


@torch.no_grad()
def gap_to(policy: Any, groups: list[Any]) -> float:
    """Mean distance of the reported log-probs from those of a model, in nats."""
    gaps = []
    for group in groups:
        for ids, said in zip(group.completions, group.sampler_logps, strict=True):
            whole = torch.tensor([[*group.example.prompt_ids, *ids]])
            logits = policy(input_ids=whole, use_cache=False).logits[0, -len(ids) - 1 : -1]  # (C, V)
            own = logits.float().log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
            gaps.append((own - torch.tensor(said)).abs())
    return float(torch.cat(gaps).mean())


def check_who_wrote(trainer: Any) -> None:
    """Every window was written by the weights of the step before it, as it says, and by no others; the first one of a
    run, where no checkpoint has it, by those of its own step."""
    policy, (begun, _) = copy.deepcopy(trainer.policy).eval(), trainer.kept.groups[0]
    looked_at = 0
    for step, groups in trainer.kept.groups:
        (version,) = {group.version for group in groups}
        assert version == step - 1 or version == step == begun
        if version not in trainer.kept.weights:  # of the run before
            continue
        policy.load_state_dict(trainer.kept.weights[version], strict=False)
        assert gap_to(policy, groups) < 1e-3
        policy.load_state_dict(trainer.kept.weights[step], strict=False)
        assert step == version or gap_to(policy, groups) > 2e-3, "other weights say something else"
        looked_at += 1
    assert looked_at >= len(trainer.kept.groups) - 1


@pytest.mark.parametrize("verb", METHODS)
def test_a_run_ahead_learns_and_is_gone_on_with(verb: str, elsewhere: Any, tmp_path: Path) -> None:
    whole = made(verb, tmp_path, elsewhere)
    whole.train()
    check_who_wrote(whole)
    name, share = LEARNED.get(verb, ("reward", 0.05))
    logged = [line[name] for line in whole.state.log_history if "loss" in line]
    assert len(logged) == STEPS and all(map(math.isfinite, logged))
    begun, ended = sum(logged[:3]) / 3, sum(logged[-3:]) / 3
    assert (ended / begun - 1) / share > 1, logged
    whole.generator.close()

    again = made(verb, tmp_path, elsewhere)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS - 4}"))
    assert again.state.global_step == STEPS
    (step, kept), (_, before) = again.kept.groups[0], whole.kept.groups[STEPS - 4]
    assert step == STEPS - 4 and [g.completions for g in kept] == [g.completions for g in before], "it was sampled anew"
    check_who_wrote(again)
    again.generator.close()


@pytest.mark.parametrize("verb", METHODS)
def test_a_run_whose_sampler_dies_ends_by_name_and_is_gone_on_with(verb: str, elsewhere: Any, tmp_path: Path) -> None:
    first = made(verb, tmp_path, elsewhere, max_steps=6)
    first.add_callback(Kill(first, elsewhere))
    with pytest.raises(RolloutError, match=r"not running|died|A Ray actor of 2 that sample"):
        first.train()
    assert DEATH <= first.state.global_step <= DEATH + 1
    check_who_wrote(first)
    first.generator.close()

    again = made(verb, tmp_path, elsewhere, max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and again.kept.groups[0][0] == first.state.global_step // 2 * 2
    check_who_wrote(again)
    again.generator.close()
