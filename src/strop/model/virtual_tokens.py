"""Prompt and prefix tuning: V learned tokens before every row, which stand outside of the model's layers.

    prompt tuning    V embeddings before those of the row (arXiv 2104.08691)
    prefix tuning    V keys and values before those of the row, in every layer (arXiv 2101.00190)

The row's tokens see all of them, and stand at the positions V, V + 1, ... PEFT's own forward knows no rows beside one
another and drops the positions it is given, so scoring goes around it: in the padded layout, whose rows share nothing.
Rollout engines keep prompts in a cache of their own and do not know them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError
from strop.model.wrappers import is_peft, unwrap
from strop.records import Batch

WHY_PADDED = "learned tokens stand before every row"
_NOT_GONE_ON_FROM = "PEFT saves what its encoder makes and not the encoder, so no run could go on from it"
_UNKNOWN = {
    "P_TUNING": f"{_NOT_GONE_ON_FROM}. Use PromptTuningConfig",
    "MULTITASK_PROMPT_TUNING": "every row would need the number of its task. Use PromptTuningConfig, one per task",
    "CPT": "every token would need its part in the prompt's format. Use PromptTuningConfig",
    "CARTRIDGE": "it is learned from the keys and values of a text. Use PrefixTuningConfig",
}


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether the adapter that is switched on puts learned tokens before every row."""
    policy: Any = unwrap(model)
    return is_peft(policy) and bool(policy.active_peft_config.is_prompt_learning)


def check_virtual_tokens(policy: Any, checkpointing: bool) -> None:
    """Refuse the kinds that cannot be scored or saved right.

    Raises:
        ConfigError: which, and why.
    """
    config = policy.active_peft_config
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "PREFIX_TUNING" and config.prefix_projection:
        raise ConfigError(f"prefix_projection=True: {_NOT_GONE_ON_FROM}. Remove it.")
    if kind == "PREFIX_TUNING" and checkpointing:
        raise ConfigError(
            "Prefix tuning keeps its tokens in a cache, which layers that are computed again do not read. Set "
            "gradient_checkpointing=False."
        )
    if kind not in ("PROMPT_TUNING", "PREFIX_TUNING"):
        raise ConfigError(f"{kind} cannot be trained here: {_UNKNOWN.get(kind, 'its tokens are not known')}.")


class VirtualTokens:
    """The learned tokens of a PEFT model, as inputs of its decoder."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.count = int(policy.active_peft_config.num_virtual_tokens)
        kind = policy.active_peft_config.peft_type
        self.are_embeddings = str(getattr(kind, "value", kind)) == "PROMPT_TUNING"

    def before(self, inputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """Inputs of the decoder for a padded batch, (S, T) each, with the V tokens before each row.

        Raises:
            ConfigError: the batch is flat, or a row does not fit behind them.
        """
        if batch.layout != "padded" or batch.attention_mask is None:
            raise ConfigError(f"layout={batch.layout!r}: {WHY_PADDED}. Use layout='auto' or layout='padded'.")
        rows, length = batch.input_ids.shape
        most = getattr(self._policy.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and self.count + length > most:
            raise ConfigError(
                f"A row has {length} tokens behind {self.count} learned ones, and the model reads {most}. Lower "
                f"max_length to {most - self.count}."
            )
        mask = batch.attention_mask
        shifted = dict(inputs, attention_mask=torch.cat([mask.new_ones(rows, self.count), mask], 1))  # (S, V + T)
        tokens = self._policy.get_prompt(rows, max_cache_len=self.count + length)
        if not self.are_embeddings:
            return shifted | {"position_ids": batch.position_ids + self.count, "past_key_values": tokens}
        embedded = self._policy.word_embeddings(shifted.pop("input_ids"))  # (S, T, H)
        shifted["inputs_embeds"] = torch.cat([tokens.to(embedded.dtype), embedded], 1)  # (S, V + T, H)
        positions = torch.arange(self.count + length, device=embedded.device)
        return shifted | {"position_ids": positions.expand(rows, -1)}

    def behind(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states or logits of the row's own tokens, (S, V + T, ...) -> (S, T, ...)."""
        return states[:, self.count :] if self.are_embeddings else states
