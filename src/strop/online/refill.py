"""Groups that teach nothing are replaced by groups of further prompts (`dynamic_sampling`).

In strict order that happens where a round is learned from, and where rounds are sampled ahead, in the thread that
samples, before the next round is begun: with the weights of its own round, and the random numbers of strict order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

from strop.engine.windows import epoch_order
from strop.online.groups import Group
from strop.records import Extreme, Mean

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

Further = Callable[[list[int]], list[Group]]
"""Places of rows in the training set -> their groups, sampled at the next moment and rewarded."""


def further_rows(dataset: Any, seed: int, epoch: int, used: Container[int]) -> Iterator[int]:
    """Places of the rows that replace others, without end: those that are not `used` (row numbers) first.

    Args:
        dataset: of prompts, with a length.
        seed: of the run and the window.
        epoch: tells the ranks' orders apart.
        used: rows of the window.
    """
    order = epoch_order(len(dataset), seed=seed, epoch=epoch, shuffle=True)
    row_of = getattr(dataset, "row", None) or (lambda place: dataset[place].row)
    return chain((place for place in order if row_of(place) not in used), cycle(order))


def window_of(trainer: OnlineTrainer) -> int:
    """The window that a trainer learns from, counted over all epochs."""
    return int(trainer.state.global_step // trainer.sizes.steps)


def with_further(
    groups: Sequence[Group],
    teaches: Callable[[Group], bool],
    places: Iterator[int],
    draw: Further,
    most: int,
    goes_on: Callable[[int], bool] = bool,
) -> tuple[list[Group], dict[str, Mean | Extreme]]:
    """Groups, and behind them the further ones that were drawn for those that teach nothing; and the share of all that
    were sampled that teaches.

    Args:
        groups: rewarded.
        teaches: whether a group is worth learning from.
        places: of further rows.
        draw: makes their groups.
        most: rounds of further sampling.
        goes_on: whether to draw once more, of how many groups lack; ranks that share a model draw equally often.
    """
    kept, drawn, further = sum(map(teaches, groups)), len(groups), list[Group]()
    for _ in range(most):
        if not goes_on(missing := max(0, len(groups) - kept)):
            break
        rows = list(islice(places, missing))
        fresh = draw(rows)
        for group, place in zip(fresh, rows, strict=True):
            group.place = place
        further += [group for group in fresh if teaches(group)]
        kept, drawn = sum(map(teaches, groups)) + len(further), drawn + len(fresh)
    return [*groups, *further], {"dynamic_sampling/kept_ratio": Mean(float(kept), float(drawn))}


def chosen(groups: Sequence[Group], teaches: Callable[[Group], bool]) -> list[Group]:
    """Those of `with_further` that are learned from: that teach, or where none does the first ones."""
    return [group for group in groups if teaches(group)] or [group for group in groups if group.place is None]
