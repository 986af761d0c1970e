"""Rounds of sampling that are made while the policy learns: `max_staleness` windows ahead.

    window w arrives:   begin round w + max_staleness, with the weights as they are now
                        wait for round w, which was begun max_staleness windows ago, and learn from it

One thread samples and one asks the rewards, each in the order of the rounds. All completions of a round come from one
version of the weights, the number of optimizer steps that had been made, which every tree carries. Everything that
looks at the policy (advantages, old log-probs, the loss) is done when the round is taken, in the training thread.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType

from strop.engine.metrics import MetricLog
from strop.engine.rows import flatten
from strop.engine.windows import window_sampler
from strop.errors import ConfigError, RolloutError
from strop.online.groups import Group, prompt_of
from strop.online.lane import Lane
from strop.online.sampling import Drawn, Load
from strop.records import Example, Extreme, Mean
from strop.rollout import SamplingParams

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

KEPT = ("completions", "sampler_logps", "finish_reasons", "reward_names", "values", "rewards", "own", "version")
"""Fields of a group that a checkpoint holds as they are."""


@dataclass
class Round:
    """One window's prompts on their way to rewarded groups."""

    number: int  # of the window, counted over all epochs
    version: int  # optimizer steps that the weights have seen which write it
    prompts: list[Example]
    sampled: Future[list[Group]]
    rewarded: Future[dict[str, list[float]]]  # the metrics of sampling and rewards, as a `MetricLog` keeps them


class RoundsAhead:
    """The rounds that are begun and not yet learned from, in their order.

    Args:
        trainer: an online trainer whose engine has `stage`.
        windows: how many windows the weights that sample may be behind.
    """

    def __init__(self, trainer: OnlineTrainer, windows: int) -> None:
        self.trainer, self.windows = trainer, windows
        self.rounds: deque[Round] = deque()
        self.sampling, self.rewarding = Lane("strop-sampling"), Lane("strop-rewards")
        self._sampled_once = False

    def take(self, prompts: Sequence[Example]) -> list[Group]:
        """The rewarded groups of the window that is learned from now; those of the windows after it are begun.

        Raises:
            RolloutError: the window has other prompts than the ones that were sampled for it; an engine that failed.
            RewardError: a reward that failed.
        """
        now = self.window
        last = math.ceil(self.trainer.state.max_steps / self.trainer.sizes.steps) - 1
        following = self.rounds[-1].number + 1 if self.rounds else now
        loads: dict[int, Load] = {}
        for number in range(following, max(now, min(now + self.windows, last)) + 1):
            moment = self.trainer.rounds + number - now
            with self.trainer.speaker(moment) as samples:
                params = self.trainer.sampling(True, moment=moment)
                load = self.load_once(loads) if samples else None
                self.rounds.append(self.begin(number, self.prompts_of(number), params, load))
        first = self.rounds.popleft()
        if [e.row for e in prompts] != [e.row for e in first.prompts]:
            raise RolloutError(
                f"Window {now} has the rows {[e.row for e in prompts]}, and completions were sampled ahead for "
                f"{[e.row for e in first.prompts]}. Rows in an order of one's own need max_staleness=0."
            )
        return self.finished(first)

    def load_once(self, loads: dict[int, Load]) -> Load:
        """What hands the weights to the engine of the moment, unless one of `loads` does so already."""
        engine = self.trainer.generator
        if id(engine) in loads:
            return already
        loads[id(engine)] = engine.stage(self.trainer.sampled_model)
        return loads[id(engine)]

    def parts(self, prompts: Sequence[Example], size: int) -> Iterator[list[Group]]:
        """The rewarded groups of a window, `size` prompts at a time, in their order; all are begun at once."""
        load, begun = self.trainer.generator.stage(self.trainer.sampled_model), []
        for start in range(0, len(prompts), size):
            params = replace(self.trainer.sampling(True), first_prompt=start)
            begun.append(self.begin(self.window, list(prompts[start : start + size]), params, load))
            load = already
        yield from map(self.finished, begun)

    def finished(self, waited: Round) -> list[Group]:
        """The groups of a round, once they are rewarded."""
        with self.trainer.clock.part("sampling"):
            groups = waited.sampled.result()
        if groups and groups[0].version == self.trainer.state.global_step:
            self.trainer.compare_sampler(groups)
        with self.trainer.clock.part("rewards"):
            self.trainer._metrics["train"].join(waited.rewarded.result())
        return groups

    @property
    def window(self) -> int:
        """The window that is learned from, counted over all epochs."""
        return int(self.trainer.state.global_step // self.trainer.sizes.steps)

    def prompts_of(self, number: int) -> list[Example]:
        """This rank's prompts of a window, counted over all epochs."""
        trainer = self.trainer
        size, steps = trainer.window_size()
        sampler = window_sampler(trainer.train_dataset, trainer.args, size, steps=steps, shuffle=trainer.shuffles)
        return flatten([[trainer.train_dataset[i] for i in sampler.rows_of(number)]])

    def begin(self, number: int, prompts: list[Example], params: SamplingParams, load: Load | None) -> Round:
        """Sample prompts of a window with the weights that `load` hands over, then ask the rewards; nothing is sampled
        for a round that learns from given completions, which has no `load`."""
        trainer, version, log = self.trainer, int(self.trainer.state.global_step), MetricLog()
        draw = nothing_drawn if load is None else trainer.drawing(prompts, trainer.group_size, params, load)
        written = version if trainer.sampled_model is trainer.policy else None  # a teacher's are of no version

        def sample() -> list[Group]:
            groups: list[Group]
            groups, counted = draw()
            log.add(counted)
            for group in groups:
                group.version = written
            return groups

        sampled = self.sampling(sample)
        if load is not None and not self._sampled_once:
            sampled.result()  # an engine may hold its first answer against the policy, which must stand still
            self._sampled_once = True
        state = copy.copy(trainer.state)
        state.log_history = list(state.log_history)

        def reward() -> dict[str, list[float]]:
            if (groups := sampled.result()) and trainer.rewards is not None:
                log.add(trainer.ask(groups, state))
            return log.state()

        return Round(number, version, prompts, sampled, self.rewarding(reward))

    def clear(self) -> None:
        """Forget what was begun."""
        for lane in (self.sampling, self.rewarding):
            lane.clear()
        self.rounds.clear()

    # ---- what a checkpoint holds ------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """The rounds that wait, as plain values, once they are finished; from one that fails on they are made anew."""
        return list(self._plain_rounds())

    def _plain_rounds(self) -> Iterator[dict[str, Any]]:
        for waiting in self.rounds:
            if waiting.rewarded.exception() is not None:  # it is raised when the run comes to it
                return
            groups = [
                {**{name: getattr(group, name) for name in KEPT}, "notes": plain_notes(group)}
                for group in waiting.sampled.result()
            ]
            places = {name: getattr(waiting, name) for name in ("number", "version")}
            yield {**places, "groups": groups, "metrics": waiting.rewarded.result()}

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Take back what `state` gave."""
        self.clear()
        for kept in state:
            prompts = self.prompts_of(kept["number"])
            text, version = partial(prompt_of, self.trainer.processing_class), kept["version"]
            groups = [
                Group(prompt, **{"version": version, **values}, prompt=text(prompt))
                for prompt, values in zip(prompts, kept["groups"], strict=bool(kept["groups"]))
            ]
            done: tuple[Future[Any], Future[Any]] = Future(), Future()
            done[0].set_result(groups)
            done[1].set_result(kept["metrics"])
            self.rounds.append(Round(kept["number"], version, prompts, *done))


def already() -> None:
    """The sampler has the weights."""


def nothing_drawn() -> Drawn:
    """Of a round that learns from given completions."""
    return [], {}


def plain_notes(group: Group) -> dict[str, list[Any]]:
    """What rewards noted, of which a checkpoint holds numbers as they are and the rest as text."""
    known = (str, int, float, bool, type(None))
    return {name: [v if type(v) in known else str(v) for v in column] for name, column in group.notes.items()}


def staleness(trees: Sequence[Example], step: int) -> dict[str, Mean | Extreme]:
    """`staleness/mean|max`: optimizer steps made since the weights that wrote each completion."""
    known = [(t.sampled, len(t.completions)) for t in trees if t.sampled is not None]
    ages = [step - own.version for own, count in known if own.version is not None for _ in range(count)]
    if not ages:
        return {}
    return {"staleness/mean": Mean(float(sum(ages)), float(len(ages))), "staleness/max": Extreme(float(max(ages)))}


def rounds_ahead(trainer: OnlineTrainer) -> RoundsAhead:
    """What a trainer samples with while it learns; what that cannot work with is refused by name.

    Raises:
        ConfigError: all of it.
    """
    kind, args = trainer.accelerator.distributed_type, trainer.args
    problems = []
    if args.max_staleness and not hasattr(trainer.train_dataset or [], "__len__"):
        problems.append("the rows are a stream, and those of the next windows must be looked up by number.")
    if trainer.turns_wanted:
        problems.append(
            "tools, environments and a rollout_func run in the script's main thread, where their time limits hold."
        )
    if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        problems.append("the policy is spread over processes (DeepSpeed, FSDP), and another process samples from it.")
    if args.engine == "vllm" and args.world_size > 1:
        problems.append(
            "several training processes share the server, and one would change its weights while it writes for another."
        )
    if problems:
        raise ConfigError.collect(f"{args.overlap} cannot be used here:", problems)
    return RoundsAhead(trainer, args.max_staleness)
