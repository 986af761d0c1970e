"""vLLM as a rollout engine: a server, or an engine in this process.

Ids go in, ids and log-probabilities come out; text never becomes ids. The answers are checked before anything is
trained on them: as many completions as asked for, ids inside the vocabulary, one finite log-probability per id, a known
finish reason. Weights are sent by `sync` when they have changed: for a LoRA policy the adapter only (the base is never
touched, and never merged into), else all of them. The first ones are compared: vLLM and the policy must give the same
tokens the same probabilities.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from strop.errors import ConfigError, RolloutError, SetupError, StropError
from strop.records import Rollout
from strop.rollout import limits
from strop.rollout.draw import fresh_seed
from strop.rollout.generator import Mixture, check_prompts
from strop.rollout.rollout_mode import sampling_mode
from strop.rollout.sampling import SamplingParams
from strop.rollout.stopping import default_stop_ids
from strop.rollout.vllm_answers import check_sampling, checked, most_stop_strings, prompt_seed, request
from strop.rollout.vllm_colocated import VllmInProcess
from strop.rollout.vllm_server import VllmServer
from strop.rollout.vllm_weights import VllmWeights

logger = logging.getLogger(__name__)

MODES = ("server", "colocate")
_COMPARED_TOKENS = 32
_COMPARED_CONTEXT = 256  # tokens of the prompt that the comparison starts with
_OTHER_MODEL_NATS = 0.5  # a mean gap of this size is no rounding and no quantisation
_SUSPICIOUS_NATS = 0.1


class VllmGenerator:
    """Samples with vLLM.

    A completion depends on (weights, prompt, index of the prompt, sample, seed) as far as vLLM's own kernels do not
    depend on the batch.

    Args:
        model: the policy, whose weights `sync` sends.
        tokenizer: for default stop ids only; vLLM has its own for stop strings.
        mode: "server" or "colocate".
        base_url: address of the server, or of several that share the prompts out.
        api_key: key of the server; None: the environment's VLLM_API_KEY, where set.
        timeout_s: seconds one request or one weight transfer to the server may take, > 0.
        wait_s: seconds to wait for a server that is still starting, >= 0.
        max_slots: completions at a time; None leaves it to vLLM.
        autocast: dtype that the policy is computed in, where its weights have another; a colocated vLLM takes it too.
        sync_dir: folder for weights on their way to vLLM, visible to it; None: a temporary one.
        model_path: what a colocated vLLM loads first; None: the policy's `name_or_path`, or the policy itself.
        llm_args: further arguments of `vllm.LLM` in mode "colocate".

    Raises:
        ConfigError: settings out of range.
        SetupError: no server answers, vLLM is not installed, or it cannot serve this policy.
    """

    name = "vllm"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        mode: str = "server",
        base_url: str | Sequence[str] = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = 240.0,
        wait_s: float = 0.0,
        max_slots: int | None = None,
        autocast: torch.dtype | None = None,
        sync_dir: str | Path | None = None,
        model_path: str | None = None,
        llm_args: dict[str, Any] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"The mode of the vllm engine must be one of {MODES}; got {mode!r}.")
        if not timeout_s > 0 or wait_s < 0 or (max_slots is not None and max_slots < 1):
            raise ConfigError(
                "timeout_s must be > 0, wait_s >= 0, and max_slots >= 1 or None; "
                f"got timeout_s={timeout_s}, wait_s={wait_s}, max_slots={max_slots}."
            )
        self.weights, self.tokenizer = VllmWeights(model), tokenizer
        self.reason = "it was made directly"
        self._by_files = mode == "server" or self.weights.adapter is not None
        # Ranks of one run share a server: the first sends the weights, and the others are told.
        self._shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self._shared and mode == "colocate":
            raise SetupError(
                f"A colocated vLLM serves one training process, and this run has {dist.get_world_size()}. Start a "
                "server (strop vllm-serve) and set vllm_mode='server'."
            )
        self._own_dir = tempfile.TemporaryDirectory(prefix="strop-vllm-") if sync_dir is None else None
        self.sync_dir = Path(sync_dir or self._own_dir.name).absolute()  # type: ignore[union-attr]
        self._run = secrets.token_hex(4)  # another run may use the same folder, or have left adapters on the server
        self.backend: Any
        if mode == "server":
            vocab = limits.vocab_size(self.weights.base)
            self.backend = VllmServer(base_url, api_key, timeout_s, max_slots, vocab_size=vocab, wait_s=wait_s)
        else:
            dtype = autocast or self.weights.base.dtype
            args = {"dtype": torch.float32 if dtype == torch.float64 else dtype, **(llm_args or {})}
            if max_slots is not None:
                args.setdefault("max_num_seqs", max_slots)
            self.backend = VllmInProcess(model_path or self._starting_point(), self.weights.lora_rank, args)
        self._attempts = 0
        self._sent: tuple[float, ...] | None = None  # fingerprint of the weights that vLLM has
        self._compared = False
        self._farewell = weakref.finalize(self, _leave, self.backend, self.sync_dir, self._run, self._own_dir)

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of prompt and completion that vLLM was started for; None: it did not say."""
        return self.backend.context_tokens

    @property
    def most_stop_strings(self) -> int | None:
        """How many stop strings a request may have; None: any number."""
        return None if isinstance(self.backend, VllmInProcess) else most_stop_strings()

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        """Sample `n` completions of every prompt; see `Generator.generate`. Sends the weights first if never sent."""
        if mixture is not None:
            raise ConfigError("The vllm engine cannot sample from a mixture of two models: use engine='native'.")
        check_sampling(sampling)
        base = self.weights.base
        vocab, context = limits.vocab_size(base), self.context_tokens
        check_prompts(prompts, n, vocab, context)
        if not (sampling.plain or sampling.greedy or self.backend.processed_logprobs):
            raise SetupError(
                "The vLLM server reports log-probabilities at temperature 1 without truncation, and the sampling "
                "settings are others. Start it by strop vllm-serve, or with --logprobs-mode processed_logprobs."
            )
        if not prompts:
            return Rollout([], [], [], [])
        if self._sent is None:
            self.sync()
        if not self._compared:
            self._compare(prompts[0])
        given = sampling.stop_token_ids
        stops = default_stop_ids(base, self.tokenizer) if given is None else given
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        asked = 1 if sampling.greedy else n  # vLLM refuses to write the same completion twice
        requests = [
            request(prompt, asked, sampling, stops, prompt_seed(seed, sampling.number(index)), context)
            for index, prompt in enumerate(prompts)
        ]
        rollout = Rollout([list(p) for p in prompts], [], [], [])
        for index, choices in enumerate(self.backend.complete(requests)):
            found = checked(choices, index, asked, requests[index]["max_tokens"], stops, vocab) * (n // asked)
            rollout.completions.append([list(c["ids"]) for c in found])
            # The distribution of greedy decoding is a point; vLLM reports the softmax that the point was taken from.
            rollout.sampler_logps.append(
                [[0.0] * len(c["ids"]) if sampling.greedy else list(c["logps"]) for c in found]
            )
            rollout.finish_reasons.append([c["finish"] for c in found])
        return rollout

    def sync(self, model: nn.Module | None = None) -> None:
        """Send the policy's weights to vLLM if they have changed: the adapter of a LoRA policy, else everything.

        Raises:
            RolloutError: vLLM did not take them.
        """
        self.stage(model)()

    def stage(self, model: nn.Module | None = None) -> Callable[[], None]:
        """`sync` in two parts: the weights as they are now are written, and the call that is returned lets the server
        read them, from any thread. Where nothing is written (in this process) or ranks meet, the call does it all."""
        if model is not None:
            self.weights = VllmWeights(model)
        mark = self.weights.fingerprint()
        if mark == self._sent:
            return lambda: None
        written = self._write() if self._by_files and not self._shared else None

        def send() -> None:
            self._sent = None  # a transfer that fails may have been half done
            if self._shared:
                self._send_from_first_rank()
            else:
                self._send(written)
            self._sent = mark

        return send

    def close(self) -> None:
        """End requests in progress, and remove the adapter from the server and the files of weights."""
        self._farewell()

    def _starting_point(self) -> str:
        """Where a colocated vLLM finds the architecture and the tokenizer."""
        base = self.weights.base
        if base.name_or_path:
            return base.name_or_path
        if self.weights.adapter is not None:
            raise SetupError(
                "A colocated vLLM loads the base model of a LoRA policy by itself, and this one was made in memory. "
                "Save it with save_pretrained, load it from there, and put the adapter on that."
            )
        folder = self.sync_dir / f"weights-{self._run}-0"
        for part in filter(None, (base, self.tokenizer)):
            part.save_pretrained(folder)
        return str(folder)

    def _write(self) -> tuple[int, Path]:
        """Write the weights as they are now; their number, and the folder that the server reads."""
        self._attempts += 1
        folder = self.sync_dir / f"weights-{self._run}-{self._attempts}"
        try:
            return self._attempts, self.weights.save(folder)
        except OSError as error:
            raise RolloutError(
                f"The weights for vLLM could not be written to {folder}: {error}. Free space there, or name another "
                "folder that vLLM can read (vllm_sync_dir)."
            ) from error

    def _send(self, written: tuple[int, Path] | None) -> None:
        """Let vLLM take the weights, from files that were written or from memory; older files go."""
        if written is None:
            self.backend.load_tensors(list(self.weights.tensors().items()))
            return
        number, files = written
        if self.weights.adapter is None:
            self.backend.reload_weights(files)
        else:  # a name per version: cached prefixes are kept per adapter and must not survive its weights
            self.backend.load_adapter(f"strop-{self._run}-{number}", files)
        for old in self.sync_dir.glob(f"weights-{self._run}-*"):
            if int(old.name.rsplit("-", 1)[1]) < number:  # a later one may wait to be read
                shutil.rmtree(old, ignore_errors=True)

    def _send_from_first_rank(self) -> None:
        """One rank sends; all learn the name of what is served, or the error."""
        told: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                self._send(self._write())
                told = [self.backend.serves]
            except StropError as error:
                told = [error]
        dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], StropError):
            raise told[0]
        self.backend.serves = told[0]

    def _compare(self, prompt: list[int]) -> None:
        """Whether vLLM and the policy are one model: the log-probs of a few tokens that vLLM draws.

        Raises:
            SetupError: they are not.
        """
        prompt, sampling = prompt[-_COMPARED_CONTEXT:], SamplingParams(max_new_tokens=_COMPARED_TOKENS)
        asked = request(prompt, 1, sampling, (), 0, self.context_tokens)
        vocab = limits.vocab_size(self.weights.base)
        (choice,) = checked(self.backend.complete([asked])[0], 0, 1, asked["max_tokens"], (), vocab)
        ids = torch.tensor(prompt + choice["ids"], device=self.weights.base.device)
        with sampling_mode([self.weights.base]):
            logits = self.weights.base(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]  # (C, V)
        logps = logits.float().log_softmax(-1).gather(-1, ids[len(prompt) :, None])[:, 0]  # (C,)
        gap = float((logps.cpu() - torch.tensor(choice["logps"])).abs().mean())
        if gap > _OTHER_MODEL_NATS:
            raise SetupError(
                f"vLLM serves another model than the policy: on {len(ids) - len(prompt)} tokens that it drew, the "
                f"log-probabilities are {gap:.2f} nats apart on average. vLLM serves {self.backend.serves!r}, the "
                f"policy is {self.weights.base.name_or_path or type(self.weights.base).__name__!r}: start vLLM with "
                "the policy's base model."
            )
        log = logger.warning if gap > _SUSPICIOUS_NATS else logger.info
        log("rollout: vLLM's log-probabilities are %.4f nats from the policy's on average, before training", gap)
        self._compared = True


def _leave(backend: Any, sync_dir: Path, run: str, own_dir: Any) -> None:
    """What a generator does last, also when it is only forgotten."""
    backend.close()
    for folder in sync_dir.glob(f"weights-{run}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    if own_dir is not None:
        own_dir.cleanup()
