"""What vLLM is asked, and whether its answer is what was asked for."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from strop.errors import ConfigError, RolloutError
from strop.rollout.sampling import SamplingParams

_LOWEST_TEMPERATURE = 0.01


def check_sampling(sampling: SamplingParams) -> None:
    """Refuse settings for which vLLM draws from another distribution than strop and transformers.

    Raises:
        ConfigError: temperatures that vLLM raises, or truncations that it applies in another order.
    """
    if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
        raise ConfigError(
            f"vLLM raises temperatures below {_LOWEST_TEMPERATURE} to it; got {sampling.temperature}. Use 0 for the "
            f"most probable token, or {_LOWEST_TEMPERATURE} and above."
        )
    if sampling.min_p and sampling.top_p < 1:
        raise ConfigError(
            f"vLLM applies min-p before top-p, strop and transformers after: with top_p={sampling.top_p} and "
            f"min_p={sampling.min_p} the sampled distribution would not be the trained one. Use one of the two."
        )


def most_stop_strings() -> int:
    """How many stop strings a vLLM server takes in a request: its VLLM_MAX_STOP_STRINGS, which is to be set for the run
    as for the server."""
    given = os.environ.get("VLLM_MAX_STOP_STRINGS", "")
    return int(given) if given.isdecimal() else 4


def prompt_seed(seed: int, index: int) -> int:
    """A seed per prompt below 2**31; vLLM adds the number of the sample to it."""
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0]) >> 1


def request(
    prompt: list[int], n: int, sampling: SamplingParams, stops: tuple[int, ...], seed: int, context: int | None
) -> dict[str, Any]:
    """The sampling settings in vLLM's names. Every one is given, because the model's own defaults would fill gaps."""
    room = sampling.max_new_tokens if context is None else min(sampling.max_new_tokens, context - len(prompt))
    return {
        "prompt": prompt,
        "n": n,
        "max_tokens": room,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(stops),
        "stop": list(sampling.stop_strings),
        "include_stop_str_in_output": True,
        "ignore_eos": True,  # the stop ids are ours alone
        "skip_special_tokens": False,
        "seed": seed,
    }


def checked(
    choices: list[dict[str, Any]], prompt: int, n: int, limit: int, stops: tuple[int, ...], vocab: int
) -> list[dict[str, Any]]:
    """The choices of one prompt in order, after they were found to be what was asked for.

    Raises:
        RolloutError: all that is wrong with them.
    """
    if len(choices) != n:
        raise RolloutError(f"vLLM returned {len(choices)} completions of prompt {prompt}, and {n} were asked for.")
    problems, ordered = [], sorted(choices, key=lambda choice: choice["index"])
    for sample, choice in enumerate(ordered):
        ids, logps, where = choice["ids"], choice["logps"], f"prompt {prompt}, completion {sample}"
        if not isinstance(ids, list) or not ids:
            problems.append(f"{where}: no token ids.")
        elif not all(isinstance(i, int) and 0 <= i < vocab for i in ids):
            problems.append(f"{where}: an id outside the policy's vocabulary of {vocab}.")
        elif not isinstance(logps, list) or len(logps) != len(ids):
            found = len(logps) if isinstance(logps, list) else "no"
            problems.append(f"{where}: {found} log-probabilities for {len(ids)} ids.")
        elif not all(isinstance(x, (int, float)) and math.isfinite(x) for x in logps):
            problems.append(f"{where}: a log-probability that is not a finite number.")
        elif len(ids) > limit:
            problems.append(f"{where}: {len(ids)} ids, and at most {limit} were asked for.")
        elif choice["finish"] not in ("stop", "length"):
            problems.append(f"{where}: ended for the reason {choice['finish']!r}.")
        else:
            _cut_after_stop(choice, stops)
    if problems:
        raise RolloutError.collect("vLLM answered wrongly:", problems)
    return ordered


def _cut_after_stop(choice: dict[str, Any], stops: tuple[int, ...]) -> None:
    """Drop whatever follows the first stop id, and call its end by its name."""
    for position, token in enumerate(choice["ids"]):
        if token in stops:
            choice["ids"], choice["logps"] = choice["ids"][: position + 1], choice["logps"][: position + 1]
            choice["finish"] = "stop"
            return
