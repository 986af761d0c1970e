"""A reward function in Ray actors: `RayReward(function, workers=8)`, for rewards that need more than this machine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import cloudpickle

from strop.errors import ConfigError
from strop.ray_cluster import Missed, answers, cluster
from strop.rewards.contract import Accepts

_AT_HOME = ("log_metric", "log_extra", "environments")
"""What lives in the training process and cannot be handed to an actor."""


class Judge:
    """The inside of an actor: holds the function, and calls it with what its signature names."""

    def __init__(self, function: bytes) -> None:
        self.function = cloudpickle.loads(function)
        self.accepts = Accepts.of(self.function)

    def score(self, arguments: dict[str, Any], n_rows: int) -> list[Any]:
        """One value per row, as the function gave them.

        Raises:
            ValueError: it gave another number of them.
        """
        values = self.accepts.call(self.function, arguments)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        values = list(values.tolist() if hasattr(values, "tolist") else values)
        if len(values) != n_rows:
            raise ValueError(f"it gave {len(values)} values for {n_rows} completions")
        return values


class RayReward:
    """A reward whose rows are judged by actors of a Ray cluster, each of them an equal part.

    The function is a copy there: it sees nothing of what the script changes later. It must judge every row by itself;
    one that compares rows (`needs_groups`) gets all of them in one actor.

    Args:
        function: sync or async; a callable that cloudpickle can write.
        workers: actors, >= 1.
        seconds: that a call may take, > 0. An actor that is late or dead is replaced at the next call.
        options: of each actor, as `ray.remote` takes them (`num_cpus`, `num_gpus`, `resources`, ...).

    It keeps its own time and stays in this process with `reward_isolation`: the waiting inside Ray is no Python code
    that a signal could end.

    Raises:
        ConfigError: no worker, or a function that asks for what lives in the training process.
        SetupError: Ray is missing.
    """

    runs_models = True  # treated as those are: no alarm, no other process

    def __init__(
        self, function: Callable[..., Any], workers: int = 2, *, seconds: float = 300.0, **options: Any
    ) -> None:
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.needs_groups = bool(getattr(function, "needs_groups", False))
        accepts = Accepts.of(function)
        if asked := [name for name in _AT_HOME if name in accepts.names]:
            raise ConfigError(f"The reward {self.__name__!r} asks for {', '.join(asked)}, which no Ray actor has.")
        if workers < 1:
            raise ConfigError(f"RayReward needs at least one worker, got {workers}.")
        cluster()
        self.__signature__ = inspect.signature(function)
        self.workers, self.seconds, self.options = 1 if self.needs_groups else workers, seconds, options
        self._function = cloudpickle.dumps(function)
        self._actors: list[Any] = []

    def __call__(self, **offered: Any) -> list[Any]:
        """One value per completion.

        Raises:
            RuntimeError: an actor died or was late.
        """
        ray, n_rows = cluster(), len(offered["completions"])
        sent = {name: value for name, value in offered.items() if name not in _AT_HOME}
        if not self._actors:
            make = ray.remote(Judge).options(**{"num_cpus": 1, **self.options})
            self._actors = [make.remote(self._function) for _ in range(self.workers)]
        cuts = [n_rows * worker // self.workers for worker in range(self.workers + 1)]
        calls = [
            actor.score.remote(_rows(sent, slice(start, stop), n_rows), stop - start)
            for actor, start, stop in zip(self._actors, cuts, cuts[1:], strict=False)
            if stop > start
        ]
        try:
            return [value for part in answers(calls, self.seconds) for value in part]
        except Missed as error:
            self.close()
            raise RuntimeError(f"of its {self.workers} Ray actors one gave no score: {error}") from None

    def close(self) -> None:
        """End the actors; the next call starts others."""
        for actor in self._actors:
            cluster().kill(actor)
        self._actors = []


def _rows(arguments: dict[str, Any], part: slice, n_rows: int) -> dict[str, Any]:
    """The arguments of a part of the rows; what is no list of one entry per row goes to every part."""
    cut = {name: isinstance(value, (list, tuple)) and len(value) == n_rows for name, value in arguments.items()}
    return {name: value[part] if cut[name] else value for name, value in arguments.items()}
