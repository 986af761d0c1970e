"""A client of an OpenEnv server as an environment of turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class OpenEnv:
    """An episode on an OpenEnv server: what the model says becomes an action, the observation is what it is told.

    `environment_factory=lambda: OpenEnv(GenericEnvClient(base_url=url), action=lambda text: {"guess": text})`. Each
    completion of a batch has a client, and with it a session of the server (`max_concurrent_envs` there). The reward
    is that of its steps, by turn; a step without one counts 0.

    Args:
        client: of the `openenv` package, or what has its `reset`, `step` and `close`.
        action: of the server's kind, made of a turn of the model.
        words: what the model is shown of an observation; None: the observation itself, as text or JSON.
        columns: of the row, that are given to the server's `reset` under their own names (`seed`, ...).
    """

    def __init__(
        self,
        client: Any,
        action: Callable[[str], Any],
        words: Callable[[Any], str | None] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        # its own loop answers the server's pings while the model writes and learns, and nobody asks
        self.client = client.sync() if hasattr(client, "sync") else client
        self._action, self._words, self._columns = action, words or _plain, columns

    def reset(self, **row: Any) -> Any:
        return self._words(self.client.reset(**{name: row[name] for name in self._columns}).observation)

    def step(self, text: str) -> tuple[Any, float, bool]:
        result = self.client.step(self._action(text))
        return self._words(result.observation), float(result.reward or 0.0), bool(result.done)

    def close(self) -> None:
        self.client.close()


def _plain(observation: Any) -> Any:
    """An observation without pydantic's class around it."""
    found: Mapping[str, Any] | Any = observation.model_dump() if hasattr(observation, "model_dump") else observation
    return found
