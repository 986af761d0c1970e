"""Runs of every method whose rounds are sampled while the policy learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import TrainerCallback

from strop.rollout.generator import Mixture
from strop.rollout.native import NativeGenerator
from strop.testing.cases import make_trainer, rows_for
from tests.online.test_ahead import Learned, Unweighed, Weighed

TWO = {"num_generations": 2, "per_device_train_batch_size": 4}
PAIRS = {"per_device_train_batch_size": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", TWO),
    "rloo": ("rloo", TWO),
    "ppo": ("ppo", {**TWO, "num_iterations": 1}),
    "ppo twice": ("ppo", {**TWO, "num_iterations": 2, "max_steps": 8}),
    "online-dpo": ("online-dpo", PAIRS),
    "xpo": ("xpo-online", PAIRS),
    "gkd": ("gkd", {**PAIRS, "lmbda": 1.0}),
    "gkd half": ("gkd", {**PAIRS, "lmbda": 0.5}),
    "gkd teacher": ("gkd", {**PAIRS, "lmbda": 0.5, "seq_kd": True}),
}
"""Name -> a case with two prompts a step, and its settings."""


def fine_reward(completions: list[str], **columns: Any) -> list[float]:
    """A number in [0, 1) that hardly two completions have in common."""
    return [sum((i + 1) * ord(c) for i, c in enumerate(text)) % 97 / 97 for text in completions]


UNCORRECTED = {"vllm_importance_sampling_correction": False}


def stale(folder: Any, name: str, engine: Any = Weighed, prompts: int = 5, trainer: Any = None, **options: Any) -> Any:
    """A trainer of `METHODS`, an epoch of two steps and a half, with an engine of the test's own."""
    verb, own = METHODS[name]
    defaults = {"max_staleness": 1, "max_steps": 5, "beta": 0.1, "max_completion_length": 8}
    rows = rows_for(verb, prompts) if verb == "gkd" else [{"prompt": row["prompt"]} for row in rows_for(verb, prompts)]
    given = {} if verb == "gkd" else {"reward_funcs": fine_reward}
    made = make_trainer(verb, folder, rows=rows, trainer={**given, **(trainer or {})}, **{**defaults, **own, **options})
    made._generator = engine(made)
    if name == "gkd teacher":
        made._teacher_generator = Unweighed(made)
    made._sampler_compared = True
    made.learned = Learned(made)
    made.add_callback(made.learned)
    return made


class Beside(NativeGenerator):
    """Samples from a copy of the policy, and of its reference, with the weights that were handed over last."""

    def __init__(self, trainer: Any) -> None:
        self.copy = copy.deepcopy(trainer.policy)
        super().__init__(self.copy, tokenizer=trainer.processing_class)
        self.opponent = copy.deepcopy(getattr(trainer.reference, "model", None))

    def stage(self, model: Any) -> Any:
        taken = {name: p.detach().clone() for name, p in model.named_parameters()}
        return lambda: self.copy.load_state_dict(taken, strict=False)

    def sync(self, model: Any = None) -> None:
        self.stage(model)()

    def generate(self, *given: Any, mixture: Any = None) -> Any:
        own = None if mixture is None else Mixture(self.opponent, mixture.weight)
        return super().generate(*given, mixture=own)


class ByHand(TrainerCallback):
    """Holds the gradient of every step against that of `formula(trainer, trees)`, a loss computed tree by tree."""

    def __init__(self, trainer: Any, formula: Any) -> None:
        self.trainer, self.formula, self.gaps = trainer, formula, []
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        own = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        given = {name: p.grad.clone() for name, p in own.items()}
        loss = self.formula(self.trainer, self.trainer.step_work.examples)
        grads = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
        largest = max(float(g.abs().max()) for g in grads.values())
        self.gaps.append(max(float((given[name] - g).abs().max()) for name, g in grads.items()) / largest)
