"""Rollout engines in Ray actors, each with a copy of the policy: `engine="ray"`.

Every actor takes an equal part of the prompts. A completion depends on its prompt's place among all of them and not on
the actor, so that any number of actors draws what one engine draws. Weights that are trained go into Ray's object store
once per sync, and from there to every actor. With a policy on a CUDA device each actor asks for one GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import cloudpickle
from torch import nn

from strop.errors import RolloutError, SetupError
from strop.model.wrappers import unwrap
from strop.ray_cluster import Missed, answers, cluster
from strop.records import Rollout
from strop.rollout import limits
from strop.rollout.draw import fresh_seed
from strop.rollout.generator import Mixture, check_prompts
from strop.rollout.own_process import Sampler, TrainedWeights, packed
from strop.rollout.rollout_mode import transformers_model
from strop.rollout.sampling import SamplingParams


class RayGenerator:
    """Samples from copies of the policy in Ray actors, with the engine that `make_generator` chooses there.

    Args:
        model: the policy, whole.
        tokenizer: for stop strings and default stop ids only.
        workers: actors, >= 1.
        seconds: that a sync, or the completions of a call, may take, > 0.
        settings: for `make_generator`.

    Raises:
        SetupError: Ray is missing, or the policy is spread over processes.
    """

    name = "ray"

    def __init__(
        self, model: nn.Module, tokenizer: Any = None, *, workers: int = 2, seconds: float = 1800.0, **settings: Any
    ) -> None:
        if limits.is_sharded(model):
            raise SetupError(
                "Ray actors have whole copies of the policy, whose weights are spread over processes here (FSDP, "
                "ZeRO-3 or tensor parallel). Use engine='vllm' with a server."
            )
        cluster()
        self.model, self.tokenizer, self.settings = unwrap(model), tokenizer, settings
        self.workers, self.seconds = workers, seconds
        self.reason = f"it was asked for, in {workers} Ray actors"
        self.actors: list[Any] = []
        self._trained = TrainedWeights()

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        if mixture is not None:
            raise SetupError("A Ray actor has the policy alone, and no second model to mix it with.")
        base = transformers_model(self.model)
        check_prompts(prompts, n, limits.vocab_size(base), limits.position_limit(base))
        if not self.actors:
            self.sync()
        sampling = replace(sampling, seed=fresh_seed() if sampling.seed is None else sampling.seed)
        cuts = [len(prompts) * worker // self.workers for worker in range(self.workers + 1)]
        parts = [(start, prompts[start:stop]) for start, stop in pairwise(cuts)]
        drawn: list[Rollout] = self._ask(
            "generate",
            *[(part, n, replace(sampling, first_prompt=sampling.first_prompt + start)) for start, part in parts],
        )
        computed = [rollout.prefilled for rollout in drawn if rollout.prefilled is not None]
        return Rollout(
            prompts=[prompt for rollout in drawn for prompt in rollout.prompts],
            completions=[group for rollout in drawn for group in rollout.completions],
            sampler_logps=[group for rollout in drawn for group in rollout.sampler_logps],
            finish_reasons=[group for rollout in drawn for group in rollout.finish_reasons],
            prefilled=sum(computed) if len(computed) == len(drawn) else None,
        )

    def sync(self, model: nn.Module | None = None) -> None:
        self.stage(model)()

    def stage(self, model: nn.Module | None = None) -> Callable[[], None]:
        """Take the weights as they are now; the call that is returned hands them over, from any thread."""
        if model is not None:
            self.model = unwrap(model)
        if not self.actors:
            self._start()
            return lambda: None
        weights = packed(self._trained.since(self.model))

        def load() -> None:
            kept = cluster().put(weights)
            self._ask("load", *[(kept,)] * self.workers)

        return load

    def close(self) -> None:
        """End the actors; the next `stage` starts others."""
        for actor in self.actors:
            cluster().kill(actor)
        self.actors = []

    def _start(self) -> None:
        ray, device = cluster(), next(self.model.parameters()).device.type
        whole = self.model if device == "cpu" else copy.deepcopy(self.model).cpu()
        self._trained.since(self.model)
        policy = ray.put(cloudpickle.dumps((whole, self.tokenizer, self.settings, None)))
        make = ray.remote(Sampler).options(num_cpus=1, num_gpus=int(device == "cuda"))
        self.actors = [make.remote() for _ in range(self.workers)]
        ((_, why), *_) = self._ask("start", *[(policy, device)] * self.workers)
        self.reason = f"it was asked for, in {self.workers} Ray actors: {why}"

    def _ask(self, what: str, *contents: tuple[Any, ...]) -> list[Any]:
        """The answers of the actors, each to its own content.

        Raises:
            RolloutError: one died, was late or failed; other named errors as they are.
        """
        calls = [getattr(actor, what).remote(*content) for actor, content in zip(self.actors, contents, strict=True)]
        try:
            return answers(calls, self.seconds)
        except Missed as error:
            self.close()
            raise RolloutError(
                f"A Ray actor of {self.workers} that sample: {error}. Go on from the last checkpoint; ray_workers and "
                "ray_timeout say how many there are, and how long they may take."
            ) from None
