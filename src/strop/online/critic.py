"""The critic beside a policy: the one that was given, or one that starts from the policy's layers."""

from __future__ import annotations

from typing import Any

from strop.engine.parts import resolve_model
from strop.errors import SetupError
from strop.model import disable_dropout
from strop.model.actor_critic import ActorCritic, critic_like
from strop.model.forward import vocab_size


def with_critic(args: Any, given: Any, policy: Any) -> ActorCritic:
    """The policy with its critic beside it: the one `given`, or one with the policy's layers."""
    if given is not None:
        return ActorCritic(policy, resolve_model(args, given, "score", None, None))
    critic = critic_like(policy)
    if args.disable_dropout:
        disable_dropout(critic)
    return ActorCritic(policy, critic)


def check_reads(critic: Any, tokens: int) -> None:
    """Raises `SetupError` where a critic does not embed all `tokens` of the tokenizer."""
    known = vocab_size(critic)
    if known is not None and known < tokens:
        raise SetupError(
            f"value_model embeds {known} tokens and the tokenizer has {tokens}. Give one with the policy's tokens, "
            "or none: the critic then starts from the policy's layers."
        )
