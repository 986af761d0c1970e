"""What a run of mutations found, and what follows for a promise."""

from __future__ import annotations

from dataclasses import dataclass, field

from proof.mutation import Mutation
from proof.promise import Promise


@dataclass
class Result:
    """How one mutation went."""

    mutation: Mutation
    caught: dict[str, str] | None = None  # the test that failed: test, error, message
    complaint: str = ""  # why it proves nothing
    seconds: float = 0.0

    @property
    def proved(self) -> bool:
        return self.caught is not None and not self.complaint


@dataclass
class Proof:
    """A run."""

    results: list[Result]
    promises: list[Promise]
    seconds: float = 0.0
    whole: bool = True  # all promises and mutations took part
    problems: list[str] = field(default_factory=list)

    def of(self, promise: Promise) -> list[Result]:
        return [result for result in self.results if promise.number in result.mutation.promises]

    def tests(self, promise: Promise) -> list[str]:
        """The files and folders of tests that stand for a promise."""
        named = (test.split("::")[0] for result in self.of(promise) for test in result.mutation.tests)
        folders = tuple(f"{place}/" for place in promise.further)
        return sorted({*promise.further, *(file for file in named if not file.startswith(folders))})

    def verdict(self, promise: Promise) -> str:
        """`proved`; `in part`: proved, and something that it says is not tested yet; `open`."""
        results = self.of(promise)
        if not results or not all(result.proved for result in results):
            return "open"
        return "in part" if promise.open else "proved"
