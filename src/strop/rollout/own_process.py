"""A rollout engine in a process of its own, with a copy of the policy: it samples while the policy learns.

The process is started with the policy as it is; from then on `stage` takes the weights that are trained as they are,
and the call that it returns hands them over. It hears neither SIGINT nor SIGTERM, so that a run that is told to stop
can end its step, and it goes when the training process does.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import safetensors.torch
import torch
from torch import nn

from strop.errors import RolloutError, SetupError, StropError
from strop.fresh_process import FreshContext, FreshProcess
from strop.model.wrappers import unwrap
from strop.records import Rollout
from strop.rollout.engines import make_generator
from strop.rollout.generator import Mixture, keeping
from strop.rollout.limits import is_sharded
from strop.rollout.sampling import SamplingParams


class ProcessGenerator:
    """Samples from a copy of the policy in another process, with the engine that `make_generator` makes there, and on
    a CPU with as many threads as the one that calls `stage` has.

    Args:
        model: the policy, whole; on an accelerator the copy is on the same device.
        tokenizer: for stop strings and default stop ids only.
        reference: a `strop.model.Reference` of the policy that stays as it is; the process has a copy of it too, and
            samples from mixtures of the two.
        timeout_s: seconds that an answer may take, > 0; a process that gives none is ended.
        settings: for `make_generator`.

    Raises:
        SetupError: the policy is spread over processes; when it is started, a policy that cannot be pickled.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        reference: Any = None,
        timeout_s: float = 1800.0,
        **settings: Any,
    ) -> None:
        if is_sharded(model):
            raise SetupError(
                "A sampling process has a whole copy of the policy, whose weights are spread over processes here "
                "(FSDP, ZeRO-3 or tensor parallel). Train with max_staleness=0."
            )
        self.model, self.tokenizer, self.timeout_s, self.settings = unwrap(model), tokenizer, timeout_s, settings
        self.name, self.reason = str(settings.get("engine", "auto")), "it samples in a process of its own"
        self.reference = reference
        self.process: FreshProcess | None = None
        self._trained = TrainedWeights()
        self._pipe: Connection | None = None
        self._asking = threading.Lock()  # an answer belongs to who asked
        self._farewell: Callable[[], Any] = lambda: None

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        """Sample `n` completions of every prompt; see `Generator.generate`. Of a mixture its weight is looked at: the
        reference is the one that the process has."""
        if mixture is not None and self.reference is None:
            raise SetupError("A sampling process has the policy alone, and no second model to mix it with.")
        rollout: Rollout = self._ask("generate", prompts, n, sampling, None if mixture is None else mixture.weight)
        return rollout

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside the block, where weights must not change, the engine there keeps keys for later calls, if it can."""
        self._ask("keep", True)
        try:
            yield
        finally:
            if self.process is not None:
                with suppress(RolloutError):  # what ended the block is raised, and says more
                    self._ask("keep", False)

    def sync(self, model: nn.Module | None = None) -> None:
        self.stage(model)()

    def stage(self, model: nn.Module | None = None) -> Callable[[], None]:
        """Take the weights as they are now; the call that is returned hands them over, from any thread."""
        if model is not None:
            self.model = unwrap(model)
        if self.process is None:
            self._start()
            return lambda: None
        return partial(self._ask, "load", packed(self._trained.since(self.model)), torch.get_num_threads())

    def close(self) -> None:
        """End the process; the next `stage` starts another."""
        self._farewell()
        self.process = None

    def _start(self) -> None:
        try:
            policy = cloudpickle.dumps((self.model, self.tokenizer, self.settings, self.reference))
        except Exception as error:
            raise SetupError(
                f"This policy cannot be sent to a sampling process: {type(error).__name__}: {error}. Train with "
                "max_staleness=0, or sample with a vLLM server."
            ) from error
        self._trained.since(self.model)
        context = FreshContext()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, torch.get_num_threads()), name="strop-sampling", daemon=True
        )
        self.process.start()
        theirs.close()
        self._farewell = util.Finalize(self, _end, (self.process, self._pipe, os.getpid()), exitpriority=10)
        try:
            self.name, self.reason = self._ask("start", policy)
        except StropError:  # it has no engine; the next `stage` starts another
            self.close()
            raise

    def _ask(self, what: str, *content: Any) -> Any:
        """The answer of the process; whether it lives is seen while it is waited for.

        Raises:
            RolloutError: it died, failed, or gave no answer in time; other named errors as they are.
        """
        with self._asking:
            return self._exchange(what, content)

    def _exchange(self, what: str, content: tuple[Any, ...]) -> Any:
        if self._pipe is None or self.process is None:
            raise RolloutError("The process that samples was ended. Go on from the last checkpoint.")
        try:
            self._pipe.send_bytes(pickle.dumps((what, content)))
            if not wait([self._pipe, self.process.sentinel], self.timeout_s):
                self.close()
                raise RolloutError(
                    f"The process that samples lives and gave no answer within ddp_timeout={self.timeout_s:g} seconds; "
                    "it was ended. Go on from the last checkpoint; raise ddp_timeout where a window takes longer."
                )
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            dead = self.process
            dead.join(1.0)
            self.close()
            raise RolloutError(
                f"The process that samples died (exit code {dead.exitcode}; -9 is often the kernel, for lack "
                "of memory). Go on from the last checkpoint; with max_staleness=0 no second copy of the policy is held."
            ) from None
        except BaseException:  # Ctrl-C in a notebook: the answer still comes, and would be taken for the next one's
            self.close()
            raise
        if isinstance(answer, BaseException):
            raise answer
        return answer


class TrainedWeights:
    """What a copy of the policy needs to follow it: the parameters that are trained, and those that were frozen, or
    written to while they are frozen, since it was asked the last time."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bool, int]] = {}

    def since(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """These parameters as they are now, by name; the first time all of them."""
        known, weights = self._known, dict(model.named_parameters())
        self._known = {name: (weight.requires_grad, weight._version) for name, weight in weights.items()}
        return {
            name: w.detach() for name, w in weights.items() if w.requires_grad or known.get(name) != self._known[name]
        }


def packed(weights: dict[str, torch.Tensor]) -> bytes:
    """Weights on their way to another process."""
    return safetensors.torch.save({name: weight.contiguous() for name, weight in weights.items()})


def _end(process: FreshProcess, pipe: Connection, owner: int) -> None:
    if os.getpid() == owner:  # not a forked copy of the training process
        process.kill()
        pipe.close()


def serve(pipe: Connection, threads: int) -> None:
    """The inside of the process: take a policy, its weights, and prompts, until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    sampler = Sampler()
    while True:
        try:
            what, content = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = getattr(sampler, what)(*content)
        except StropError as error:
            answer = error
        except Exception as error:  # whatever the model raises; the process goes on, and the other side ends the run
            answer = RolloutError(f"Sampling failed in its process: {type(error).__name__}: {error}")
        pipe.send_bytes(pickle.dumps(answer))


class Sampler:
    """What the process holds: a copy of the policy, and the engine on it."""

    def start(self, policy: bytes, device: str | None = None) -> tuple[str, str]:
        """Take the policy, to a device of another kind than it was sent from; the engine's name, why it was chosen."""
        self.model, tokenizer, settings, self.reference = pickle.loads(policy)
        if device is not None:
            self.model.to(device)
        self.generator = make_generator(model=self.model, tokenizer=tokenizer, **settings)
        self.kept = ExitStack()
        return self.generator.name, self.generator.reason

    def load(self, weights: bytes, threads: int | None = None) -> None:
        """Take the weights that have changed, and, where it is given, how many threads to compute with."""
        self.kept.close()
        if threads is not None:
            torch.set_num_threads(threads)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in safetensors.torch.load(weights).items():
                own[name].copy_(tensor)

    def keep(self, on: bool) -> None:
        """Whether keys of these weights are kept from now on, for the calls of a conversation."""
        self.kept.close()
        if on:
            self.kept.enter_context(keeping(self.generator))

    def process_id(self) -> int:
        """Of the process it is in."""
        return os.getpid()

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, weight: float | None = None
    ) -> Rollout:
        """Sample with the weights as they are; with `weight`, from the mixture in which the reference has it."""
        if weight is None:
            return self.generator.generate(prompts, n, sampling)
        with self.reference.active() as reference:
            mixture = Mixture(reference, weight, context=self.reference.active)
        return self.generator.generate(prompts, n, sampling, mixture=mixture)


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Inside the block this process computes with half of its threads, on a CPU that a sampling process shares.

    Two processes with a thread for every core each would wait in turn for threads that have none.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
