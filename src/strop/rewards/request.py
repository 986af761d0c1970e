"""One batch of completions that is to be scored: checked, cut to rows, and cut to what may leave the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from strop.errors import DataError
from strop.rewards.contract import OFFERED, Accepts


@dataclass(slots=True)
class ScoringRequest:
    """What every reward of one call is asked about."""

    arguments: dict[str, list[Any]]
    """(n,) each: prompts and completions; token ids and live environments where given; the rows' other columns."""
    trainer_state: Any = None

    @classmethod
    def checked(
        cls,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None,
        columns: Mapping[str, Sequence[Any]] | None,
        trainer_state: Any = None,
        environments: Sequence[Any] | None = None,
    ) -> ScoringRequest:
        """Check that everything has one entry per completion.

        Raises:
            DataError: lengths differ, or a column has the name of a fixed argument; all problems at once.
        """
        n_rows = len(completions)
        ids = None if completion_ids is None else [_plain_ids(each) for each in completion_ids]
        fixed = {"prompts": prompts, "completions": completions, "completion_ids": ids, "environments": environments}
        given = {name: value for name, value in {**fixed, **(columns or {})}.items() if value is not None}
        problems = [
            f"'{name}' has {len(value)} entries, the batch has {n_rows} completions"
            for name, value in given.items()
            if len(value) != n_rows
        ]
        problems += [
            f"a column is called '{name}', which is the name of a fixed argument of reward functions: rename the column"
            for name in columns or ()
            if name in OFFERED
        ]
        if problems:
            raise DataError.collect("These completions cannot be scored.", problems)
        return cls({name: list(value) for name, value in given.items()}, trainer_state)

    @property
    def n_rows(self) -> int:
        return len(self.arguments["completions"])

    def take(self, rows: Sequence[int]) -> ScoringRequest:
        """The same request for some of the rows."""
        cut = {name: [values[row] for row in rows] for name, values in self.arguments.items()}
        return ScoringRequest(cut, self.trainer_state)

    def offered(self) -> dict[str, Any]:
        """Everything a function may ask for, by name; lists of its own, so that no function changes another's."""
        return {**own(self.arguments), "trainer_state": self.trainer_state}

    def sent(self, accepts: Accepts) -> dict[str, Any]:
        """What of it goes to a function in another process: what it accepts, with a snapshot of the trainer state."""
        offered = {name: value for name, value in self.offered().items() if accepts.wants(name)}
        offered.pop("environments", None)  # live objects
        if "trainer_state" in offered:
            offered["trainer_state"] = snapshot(self.trainer_state)
        return offered

    @property
    def steps_done(self) -> int | None:
        """Optimizer steps that the trainer has done, where its state is given."""
        return getattr(self.trainer_state, "global_step", None)


def snapshot(state: Any) -> Any:
    """The plain data of a trainer's state, so that a worker can read it without importing transformers."""
    fields = getattr(state, "__dict__", None)
    if fields is None:
        return state if _is_plain(state) else None
    return SimpleNamespace(**{name: value for name, value in fields.items() if _is_plain(value)})


def own(value: Any) -> Any:
    """The value with lists and dictionaries of its own, at every depth."""
    if type(value) is list:
        return [own(item) for item in value]
    return {key: own(item) for key, item in value.items()} if type(value) is dict else value


def _plain_ids(ids: Any) -> list[int]:
    """Ids as a list: a worker should not need torch to read a tensor of them."""
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)):
        return True
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
