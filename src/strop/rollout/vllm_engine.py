"""vLLM as a rollout engine: a server, or an engine in this process.

The answers are checked before anything is trained on them: as many completions as asked for, ids inside the
vocabulary, one finite log-probability per id, a known finish reason. Weights are sent by `sync`: for a LoRA policy
the adapter only (the base is never touched, and never merged into), else all of them.
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from strop.errors import ConfigError, RolloutError, SetupError
from strop.records import Rollout
from strop.rollout import limits
from strop.rollout.draw import fresh_seed
from strop.rollout.generator import Mixture, check_prompts
from strop.rollout.rollout_mode import transformers_model
from strop.rollout.sampling import SamplingParams
from strop.rollout.stopping import default_stop_ids
from strop.rollout.vllm_colocated import VllmInProcess
from strop.rollout.vllm_server import VllmServer

logger = logging.getLogger(__name__)

MODES = ("server", "colocate")


class VllmGenerator:
    """Samples with vLLM.

    A completion depends on (weights, prompt, index of the prompt, sample, seed) as far as vLLM's own kernels do not
    depend on the batch.

    Args:
        model: the policy, whose weights `sync` sends.
        tokenizer: for default stop ids only; vLLM has its own for stop strings.
        mode: "server" or "colocate".
        base_url: address of the server.
        api_key: key of the server.
        timeout_s: seconds one request or one weight transfer may take, > 0.
        max_parallel: requests to the server at the same time.
        sync_dir: folder for weights on their way to vLLM, visible to it; None: a temporary one.
        model_path: what a colocated vLLM loads first; None: the policy's `name_or_path`.
        llm_args: further arguments of `vllm.LLM` in mode "colocate".

    Raises:
        ConfigError: settings out of range.
        SetupError: no server answers, or vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        mode: str = "server",
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 240.0,
        max_parallel: int = 64,
        sync_dir: str | Path | None = None,
        model_path: str | None = None,
        llm_args: dict[str, Any] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"The mode of the vllm engine must be one of {MODES}; got {mode!r}.")
        if not timeout_s > 0 or max_parallel < 1:
            raise ConfigError(
                f"timeout_s must be > 0 and max_parallel >= 1; got timeout_s={timeout_s}, max_parallel={max_parallel}."
            )
        self.model, self.base, self.tokenizer = model, transformers_model(model), tokenizer
        self.reason = "it was made directly"
        self._adapter_name = _lora_adapter(model)
        self.backend: VllmServer | VllmInProcess
        if mode == "server":
            self.backend = VllmServer(base_url, api_key, timeout_s, max_parallel)
        else:
            rank = None if self._adapter_name is None else int(model.peft_config[self._adapter_name].r)  # type: ignore[union-attr, index]
            self.backend = VllmInProcess(model_path or self.base.name_or_path, rank, llm_args or {})
        self._own_dir = tempfile.TemporaryDirectory(prefix="strop-vllm-") if sync_dir is None else None
        self.sync_dir = Path(sync_dir or self._own_dir.name).absolute()  # type: ignore[union-attr]
        self._run = secrets.token_hex(4)  # another run may have left adapters on the same server
        self._version = 0
        self._served: str | None = None  # name of the adapter that vLLM serves now

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        """Sample `n` completions of every prompt; see `Generator.generate`. Sends the weights first if never sent."""
        if mixture is not None:
            raise ConfigError("The vllm engine cannot sample from a mixture of two models: use engine='native'.")
        if sampling.min_p and sampling.top_p < 1:
            raise ConfigError(
                f"vLLM applies min-p before top-p, strop and transformers after: with top_p={sampling.top_p} and "
                f"min_p={sampling.min_p} the sampled distribution would not be the trained one. Use one of the two."
            )
        vocab, context = limits.vocab_size(self.base), self.backend.context_tokens
        check_prompts(prompts, n, vocab, context)
        if not (sampling.plain or sampling.greedy or self.backend.processed_logprobs):
            raise SetupError(
                "The vLLM server reports log-probabilities at temperature 1 without truncation, and the sampling "
                "settings are others. Start it with --logprobs-mode processed_logprobs."
            )
        if not prompts:
            return Rollout([], [], [], [])
        if self._version == 0:
            self.sync()
        given = sampling.stop_token_ids
        stops = default_stop_ids(self.base, self.tokenizer) if given is None else given
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        asked = 1 if sampling.greedy else n  # vLLM refuses to write the same completion twice
        requests = [
            _request(prompt, asked, sampling, stops, _prompt_seed(seed, index), context)
            for index, prompt in enumerate(prompts)
        ]
        rollout = Rollout([list(p) for p in prompts], [], [], [])
        for index, choices in enumerate(self.backend.complete(requests)):
            checked = _checked(choices, index, asked, requests[index]["max_tokens"], stops, vocab) * (n // asked)
            rollout.completions.append([list(c["ids"]) for c in checked])
            # The distribution of greedy decoding is a point; vLLM reports the softmax that the point was taken from.
            rollout.sampler_logps.append(
                [[0.0] * len(c["ids"]) if sampling.greedy else list(c["logps"]) for c in checked]
            )
            rollout.finish_reasons.append([c["finish"] for c in checked])
        return rollout

    def sync(self, model: nn.Module | None = None) -> None:
        """Send the policy's weights to vLLM: the adapter of a LoRA policy, else everything.

        Raises:
            RolloutError: vLLM did not take them.
        """
        if model is not None:
            self.model, self.base, self._adapter_name = model, transformers_model(model), _lora_adapter(model)
        version = self._version + 1
        if self._adapter_name is None and isinstance(self.backend, VllmInProcess):
            self.backend.load_tensors([(name, tensor.detach()) for name, tensor in self.base.state_dict().items()])
            self._version = version
            return
        folder = self.sync_dir / f"weights-{version}"
        shutil.rmtree(folder, ignore_errors=True)
        if self._adapter_name is None:
            self.base.save_pretrained(folder)
            assert isinstance(self.backend, VllmServer)
            self.backend.reload_weights(folder)
        else:
            self.model.save_pretrained(folder, selected_adapters=[self._adapter_name])  # type: ignore[operator]
            inner = folder / self._adapter_name  # PEFT puts every adapter but "default" into a folder of its own
            name = f"strop-{self._run}-{version}"
            self.backend.load_adapter(name, inner if inner.is_dir() else folder, self._served)
            self._served = name
        shutil.rmtree(self.sync_dir / f"weights-{self._version}", ignore_errors=True)
        self._version = version

    def close(self) -> None:
        """End requests in progress, and remove the adapter from the server and the files of weights."""
        self.backend.close(self._served)
        self._served = None
        for version in (self._version, self._version + 1):
            shutil.rmtree(self.sync_dir / f"weights-{version}", ignore_errors=True)
        if self._own_dir is not None:
            self._own_dir.cleanup()


def _lora_adapter(model: nn.Module) -> str | None:
    """Name of the active LoRA adapter of a PEFT model, None for any other model.

    Raises:
        SetupError: another kind of adapter, or several at a time.
    """
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = list(getattr(model, "active_adapters", configs))
    if len(active) != 1 or str(getattr(configs[active[0]].peft_type, "value", "")) != "LORA":
        raise SetupError(
            f"vLLM serves one LoRA adapter at a time; the policy has {active} active. Use engine='native'."
        )
    return active[0]


def _prompt_seed(seed: int, index: int) -> int:
    """A seed per prompt below 2**31; vLLM adds the number of the sample to it."""
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1)[0]) >> 1


def _request(
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


def _checked(
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
