"""`strop vllm-serve`: vLLM's own server, started with what the online trainers need of it.

It becomes the process, so signals, logs and the exit status are vLLM's. Every flag that is not named here goes to
vLLM as it is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from strop.cli.flags import Flag, fit
from strop.errors import ConfigError, SetupError

FLAGS = (
    Flag("model", str, help="Model: hub id or folder; the base model where the policy is an adapter. Required."),
    Flag("lora_rank", int, help="Take LoRA adapters of up to this rank. Without it, full weights are taken."),
    Flag("host", str, "127.0.0.1", "Address to listen at. Whoever reaches it can replace the weights."),
    Flag("port", int, 8000, "Port to listen at."),
)
TITLE = """strop vllm-serve: a vLLM server for online trainers

Further flags (--dtype, --max-model-len, --tensor-parallel-size, ...) go to vLLM as they are."""
SET_HERE = {
    "logprobs_mode": "it is always processed_logprobs",
    "enable_lora": "use --lora_rank",
    "max_lora_rank": "use --lora_rank",
}


def run(argv: list[str]) -> int:
    command, settings = server_command(argv)
    if importlib.util.find_spec("vllm") is None:
        raise SetupError(
            "strop vllm-serve needs the package vllm, which is not installed: pip install 'strop[vllm]' "
            "(docs/vllm.md has the CPU build)."
        )
    print(" ".join([*(f"{name}={value}" for name, value in settings.items()), *command]), flush=True)
    os.execve(command[0], command, {**os.environ, **settings})


def server_command(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM, and what its environment needs besides.

    Raises:
        ConfigError: no model, or flags that strop sets itself.
    """
    from strop.rollout.vllm_weights import SERVED_RANKS, served_rank

    own, rest = _split(argv)
    if not own["model"]:
        raise ConfigError("--model must be given. See strop vllm-serve --help.")
    rank = own["lora_rank"]
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= SERVED_RANKS[-1]):
        raise ConfigError(f"--lora_rank must be an integer from 1 to {SERVED_RANKS[-1]}; got {rank!r}.")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(own["model"])]
    command += ["--host", str(own["host"]), "--port", str(own["port"]), "--logprobs-mode", "processed_logprobs"]
    if rank is None:
        return command + rest, {"VLLM_SERVER_DEV_MODE": "1"}  # opens /collective_rpc
    command += ["--enable-lora", "--max-lora-rank", str(served_rank(rank))]
    return command + rest, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def _split(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Values of the flags above, and the words that are for vLLM."""
    flags, own, rest = {flag.name: flag for flag in FLAGS}, {flag.name: flag.default for flag in FLAGS}, []
    words = iter(argv)
    for word in words:
        name, has_value, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name in SET_HERE:
            raise ConfigError(f"{word} is set by strop vllm-serve: {SET_HERE[name]}.")
        if not word.startswith("--") or name not in flags:
            rest.append(word)
        elif (given := value if has_value else next(words, None)) is None:
            raise ConfigError(f"{word} needs a value. See strop vllm-serve --help.")
        else:
            own[name] = fit(given, flags[name])
    return own, rest
