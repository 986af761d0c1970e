"""A policy and its critic as one module, so that one optimizer, one wrapper and one checkpoint hold both."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from strop.model import Scoring, apply_peft, install, is_peft, note_in_card, set_scoring_pad, with_head
from strop.model.beside_adapter import save_beside
from strop.model.headed import note_loading
from strop.records import Batch, Scores, Want

VALUE_FOLDER = "value_model"


def critic_like(policy: nn.Module) -> nn.Module:
    """A critic with a fresh head on a copy of the policy's layers, all of them trained.

    Beside a policy with an adapter, the critic has an adapter too, which starts as a copy of the policy's: what the
    policy keeps frozen (and perhaps quantised) stays so.
    """
    if not is_peft(policy):
        critic = with_head(policy, "score")
        for parameter in critic.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return critic
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    name: Any = policy.active_adapter
    weights = get_peft_model_state_dict(policy, adapter_name=name)
    own: Any = policy.peft_config
    config = dataclasses.replace(own[name], task_type="SEQ_CLS", inference_mode=False)
    critic = apply_peft(with_head(copy.deepcopy(policy).unload(), "score"), config)  # type: ignore[operator]
    fresh = get_peft_model_state_dict(critic)  # the head among them
    set_peft_model_state_dict(critic, {key: weights.get(key, value) for key, value in fresh.items()})
    return critic


class ActorCritic(nn.Module):
    """`policy` (a causal language model) and `critic` (a model with a scalar head); one forward pass runs both."""

    _keys_to_ignore_on_save = None  # asked for where a checkpoint has weights under other names

    def __init__(self, policy: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        install(policy)
        install(critic)
        self.policy, self.critic = policy, critic

    @property
    def config(self) -> Any:
        return self.policy.config

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def forward(self, policy_scoring: Scoring, value_scoring: Scoring) -> dict[str, torch.Tensor]:
        policy, critic = self.policy(scoring=policy_scoring), self.critic(scoring=value_scoring)
        return {**policy, "values": critic["values"]}

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        for model in (self.policy, self.critic):
            model.activation_checkpointing_enable(**kwargs)  # type: ignore[operator]

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The older name, which transformers before 5.21 calls."""
        for model in (self.policy, self.critic):
            model.gradient_checkpointing_enable(**kwargs)  # type: ignore[operator]

    def save(
        self,
        folder: Path,
        tokenizer: Any,
        selected_adapters: list[str] | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """The policy in `folder`, as any model is saved (of several adapters those selected), the critic in a
        folder within, each with its tokenizer: the critic's pads with a token that ends nothing. `state` are the whole
        weights of both where the module's own are cut into shards."""
        options = {} if selected_adapters is None else {"selected_adapters": selected_adapters}
        within, own = folder / VALUE_FOLDER, copy.deepcopy(tokenizer)
        policy, critic = (part_of(state, name) for name in ("policy", "critic"))
        self.policy.save_pretrained(folder, state_dict=policy, **options)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        unsaid = set_scoring_pad(self.critic, own, ())
        self.critic.save_pretrained(within, state_dict=critic)  # type: ignore[operator]
        own.save_pretrained(within)
        if unsaid:
            note_in_card(within)
        save_beside(self.policy, folder, policy)
        save_beside(self.critic, within, critic)
        note_loading(self.critic, within)


def part_of(state: Mapping[str, torch.Tensor] | None, name: str) -> dict[str, torch.Tensor] | None:
    """The weights of a module's child, under their names in it."""
    if state is None:
        return None
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def score_both(model: nn.Module, batch: Batch, want: Want, **options: Any) -> Scores:
    """Policy and critic on one batch: log-probs (and what else is wanted), and `values` of the same states."""
    out = model(policy_scoring=Scoring(batch, want, **options), value_scoring=Scoring(batch, Want.VALUE))
    out.pop("strop", None)
    return Scores(segment=batch.segment, num_completions=batch.num_completions, **out)
