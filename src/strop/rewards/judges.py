"""Pairwise judges: which of two completions of a prompt is better?

    judge.compare(prompts, pairs)          ->  0 (the first), 1 (the second) or None (no verdict), per pair
    judge.probabilities(prompts, pairs)    ->  P(the first wins) in [0, 1], or None, per pair

Judges read plain text, not chat tokens. Two identical completions carry no preference: they are a tie and are not
shown to the judge at all. What a judge cannot answer is None, never a win of one side. `as_judge` takes TRL's too.
"""

from __future__ import annotations

import abc
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError, RewardError
from strop.rewards.contract import describe
from strop.rewards.texts import completion_text, prompt_text

Pair = tuple[Any, Any]
"""Two completions of one prompt; strings, or message lists."""


class Judge(abc.ABC):
    """Base of judges. A subclass answers `judge_pairs`; the checks and the ties are here.

    `reads_text` is False for judges that want prompts and completions as they are, message lists included.
    """

    reads_text = True

    @abc.abstractmethod
    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        """P(the first wins), in [0, 1], or None, for pairs that differ; (n,)."""

    def probabilities(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> list[float | None]:
        """P(the first completion wins) for each pair.

        Args:
            prompts: (n,) strings or message lists.
            pairs: (n,) two completions each.

        Returns:
            (n,) numbers in [0, 1]; 0.5 for identical completions; None where there is no verdict.

        Raises:
            RewardError: the judge answered with the wrong number of verdicts, or with something else than those.
        """
        if len(prompts) != len(pairs):
            raise RewardError(f"{len(prompts)} prompts were given with {len(pairs)} pairs. Give one prompt per pair.")
        if self.reads_text:
            prompts = [prompt_text(prompt) for prompt in prompts]
            pairs = [(completion_text(first), completion_text(second)) for first, second in pairs]
        verdicts: list[float | None] = [0.5] * len(pairs)
        open_pairs = [index for index, (first, second) in enumerate(pairs) if first != second]
        if open_pairs:
            answers = self.judge_pairs([prompts[i] for i in open_pairs], [pairs[i] for i in open_pairs])
            for index, answer in zip(open_pairs, self._checked(answers, len(open_pairs)), strict=True):
                verdicts[index] = answer
        return verdicts

    def compare(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> list[int | None]:
        """The winner of each pair: 0 the first, 1 the second, None where there is no verdict or a tie; (n,)."""
        return [
            None if probability is None or probability == 0.5 else int(probability < 0.5)
            for probability in self.probabilities(prompts, pairs)
        ]

    def _checked(self, answers: Any, n_pairs: int) -> list[float | None]:
        name = type(self).__name__
        for index, answer in enumerate(_one_per_pair(name, answers, n_pairs)):
            if answer is not None and not (isinstance(answer, (int, float)) and 0 <= answer <= 1):
                raise RewardError(
                    f"{name} must give a probability in [0, 1] or None; for pair {index} it gave {describe(answer)}."
                )
        return [None if answer is None else float(answer) for answer in answers]


class RuleJudge(Judge):
    """A judge made of a function `rule(prompt, first, second)` that returns 0, 1 or None.

    Args:
        rule: receives texts; 0 means that the first completion is better, 1 the second, None neither.
    """

    def __init__(self, rule: Callable[[str, str, str], int | None]) -> None:
        self.rule = rule

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        winners = [self.rule(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True)]
        for index, winner in enumerate(winners):
            if winner not in (0, 1, None):
                raise RewardError(f"The rule must return 0, 1 or None; for pair {index} it gave {describe(winner)}.")
        return [None if winner is None else 1.0 - winner for winner in winners]


class RankJudge(Judge):
    """A judge made of one of TRL's: an object with `judge(prompts, completions, shuffle_order)`.

    Args:
        ranks: its `judge` receives texts, two completions for each prompt, and returns for each pair the index of the
            better one, or -1 where it cannot say. `shuffle_order` is left as it has it.
    """

    def __init__(self, ranks: Any) -> None:
        self.ranks = ranks
        self.name = type(ranks).__name__

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        winners = self.ranks.judge(list(prompts), [list(pair) for pair in pairs])
        if hasattr(winners, "tolist"):
            winners = winners.tolist()
        for index, winner in enumerate(_one_per_pair(self.name, winners, len(pairs))):
            if isinstance(winner, bool) or not isinstance(winner, int) or winner not in (0, 1, -1):
                raise RewardError(
                    f"The method judge of {self.name} must return 0, 1, or -1 where it cannot say, for each pair; for "
                    f"pair {index} it gave {describe(winner)}."
                )
        return [None if winner == -1 else 1.0 - winner for winner in winners]


def _one_per_pair(name: str, verdicts: Any, n_pairs: int) -> Sequence[Any]:
    if not isinstance(verdicts, (list, tuple)) or len(verdicts) != n_pairs:
        raise RewardError(f"{name} must give a list of {n_pairs} verdicts, one per pair; it gave {describe(verdicts)}.")
    return verdicts


def as_judge(given: Any) -> Any | None:
    """What compares two completions: a `Judge`, or an object with TRL's method `judge`; None for all else."""
    if hasattr(given, "probabilities") and hasattr(given, "compare"):
        return given
    return RankJudge(given) if callable(getattr(given, "judge", None)) and not callable(given) else None


class RandomJudge(Judge):
    """A coin: for tests, and as the baseline that a judge has to beat.

    Args:
        seed: of its own random numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        return [float(self._random.randrange(2)) for _ in pairs]


class RewardModelJudge(Judge):
    """A reward as a judge, by the Bradley-Terry model.

    P(first wins) = sigmoid((r_first - r_second) / temperature);  no verdict where a reward abstains.

    Args:
        reward: a `ModelReward`, or any function (prompts, completions) -> one float or None per completion.
        temperature: of the difference, > 0; 1 for models trained with the Bradley-Terry loss.
    """

    reads_text = False

    def __init__(self, reward: Callable[..., Sequence[float | None]], *, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature!r}; it must be positive.")
        self.reward = reward
        self.temperature = temperature

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        doubled = [prompt for prompt in prompts for _ in range(2)]
        scores = self.reward(prompts=doubled, completions=[completion for pair in pairs for completion in pair])
        return [self._wins(first, second) for first, second in zip(scores[::2], scores[1::2], strict=True)]

    def _wins(self, first: float | None, second: float | None) -> float | None:
        if first is None or second is None:
            return None
        return _sigmoid((first - second) / self.temperature)


class AskingJudge(Judge):
    """A language model that is asked which answer is better. Each question is asked in both orders, so that a judge
    that only likes one position has no preference. A subclass sets `instruction` and says what the model answers."""

    instruction: str

    @abc.abstractmethod
    def probabilities_of_a(self, questions: Sequence[str]) -> Sequence[float | None]:
        """P(A is better), in [0, 1], or None, for each question; (n,)."""

    def judge_pairs(self, prompts: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[float | None]:
        given = list(zip(prompts, pairs, strict=True))
        there = [judge_question(self.instruction, prompt, first, second) for prompt, (first, second) in given]
        back = [judge_question(self.instruction, prompt, second, first) for prompt, (first, second) in given]
        answers = self.probabilities_of_a(there + back)
        return both_orders(answers[: len(given)], answers[len(given) :])


def both_orders(first_as_a: Sequence[float | None], first_as_b: Sequence[float | None]) -> list[float | None]:
    """P(first wins) free of position bias, from P(A wins) with the first completion shown as A, and as B.

    P = (P(A | first is A) + 1 - P(A | first is B)) / 2;  None where either is None.
    """
    return [
        None if a is None or b is None else (a + 1.0 - b) / 2.0 for a, b in zip(first_as_a, first_as_b, strict=True)
    ]


JUDGE_INSTRUCTION = (
    "Two answers to the same request are shown below. Decide which one is better: "
    "more correct, more helpful, and clearer. Their order means nothing; neither does their length."
)


def judge_question(instruction: str, prompt: str, first: str, second: str) -> str:
    """The text that a language model is asked to answer with one letter."""
    return (
        f"{instruction}\n\n### Request\n{prompt}\n\n### Answer A\n{first}\n\n### Answer B\n{second}\n\n"
        "Which answer is better? Reply with one letter: A or B."
    )


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
