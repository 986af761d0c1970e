"""A trainer caught in the middle of a step, and the plain forward passes that formulas are computed from.

Nothing here uses strop's forward pass, layouts, heads or losses: a row at a time goes through the model as
transformers has it, so that what agrees with it is right for a reason of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from strop.records import Example
from strop.testing.cases import examples_of, letters_reward

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer


@dataclass
class Scene:
    """One optimizer step: its trees, the policy now, and the models as they were when the trees were made."""

    trainer: BaseTrainer
    trees: list[Example]
    policy: Any  # now, with gradient
    before: Any  # when the completions of the step were sampled and rewarded
    critic: Any = None
    critic_before: Any = None

    @property
    def args(self) -> Any:
        return self.trainer.args

    def ref_logps(self, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """The reference's log-probs of a completion, (C,)."""
        with self.trainer.reference.active() as model:
            return logps(model, prompt, completion, temperature).detach()

    def text(self, completion: Sequence[int]) -> str:
        return self.trainer.processing_class.decode(completion, skip_special_tokens=True)

    def reward(self, completion: Sequence[int]) -> float:
        return letters_reward([self.text(completion)])[0]

    def opponent(self, prompt: list[int]) -> list[int]:
        """What the other player said to a prompt."""
        return self.trainer.generator.generate([prompt], 1, None, mixture=self).completions[0][0]


def scene_of(trainer: BaseTrainer, *, uses: int = 1, seed: int = 1) -> Scene:
    """The trainer's first step over its whole training set, with a policy that has moved since it began.

    Args:
        uses: how often the trees have been used when the step is over; 2 makes probability ratios differ from 1.
        seed: of the moves.
    """
    trainer.state.logging_steps = 1
    rows = examples_of(trainer)
    model = trainer.model
    move(model, seed)
    before = copy.deepcopy(model)
    trees = trainer.prepare_step(rows)
    for _ in range(uses - 1):
        trainer.training_step(model, trainer.make_work(trees))
        trees = trainer.prepare_step([] if getattr(trainer, "buffer", None) else rows)
    trainer._metrics["train"].drain()
    if uses > 1 or hasattr(model, "critic"):
        move(model, seed + 1)
    model.zero_grad()
    if hasattr(model, "critic"):
        return Scene(trainer, trees, model.policy, before.policy, model.critic, before.critic)
    return Scene(trainer, trees, model, before)


@torch.no_grad()
def move(model: Any, seed: int, size: float = 0.02) -> None:
    """Add noise to every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def logits(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Logits that the tokens of a completion are drawn from, (C, V); without a prompt the first token has none."""
    ids = torch.tensor([[*prompt, *completion]])
    out = model(input_ids=ids).logits[0]  # (P + C, V)
    return out[max(len(prompt), 1) - 1 : -1]


def logps(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of a completion's tokens, (C,); without a prompt (C - 1,)."""
    rows = (logits(model, prompt, completion) / temperature).log_softmax(-1)
    targets = torch.tensor(list(completion if prompt else completion[1:]))
    return rows.gather(1, targets[:, None])[:, 0]


def states(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Final hidden states of prompt and completion, (P + C, H)."""
    return model.model(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state[0]


def values(critic: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """A critic's value of the state that each token of a completion is drawn from, (C,)."""
    return critic.score(states(critic, prompt, completion))[len(prompt) - 1 : -1, 0]
