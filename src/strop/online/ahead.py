"""Rounds of sampling that are made while the policy learns: `max_staleness` windows ahead.

    window w arrives:   begin round w + max_staleness, with the weights as they are now
                        wait for round w, which was begun max_staleness windows ago, and learn from it

One thread samples and one asks the rewards, each in the order of the rounds. All completions of a round, and all turns
of its conversations, come from one version of the weights, the number of optimizer steps that had been made, which
every tree carries: a round is sampled to its end before the weights of the next are taken. Everything that looks at
the policy (advantages, old log-probs, the loss) is done when the round is taken, in the training thread.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType

from strop.engine.metrics import MetricLog
from strop.engine.rows import flatten
from strop.engine.windows import window_sampler
from strop.errors import ConfigError, RolloutError
from strop.online.groups import Group, prompt_of
from strop.online.kept_groups import kept, taken_up
from strop.online.lane import Lane, after
from strop.online.refill import window_of, with_further
from strop.online.sampling import Drawn, Load, RoundEngine
from strop.records import Example, Extreme, Mean
from strop.rollout import SamplingParams
from strop.rollout.own_process import half_of_the_threads

if TYPE_CHECKING:
    from strop.online.trainer import OnlineTrainer

ENDING_SECONDS = 2.0
"""How long conversations that nobody waits for may take to stop; then they are left behind with their thread."""
STOPPING_SECONDS = 60.0
"""How long a run that is told to stop waits for conversations ahead, where no `stop_grace` says."""
LOOKING_SECONDS = 0.5
"""How often a checkpoint that waits for a round looks whether the run is told to stop."""
MOVING = ("model", "model_wrapped", "policy", "sampled_model", "optimizer", "lr_scheduler")
"""What the training thread changes of a trainer while rounds are sampled."""


class TrainerMeanwhile:
    """What a user's rollout function is given for its trainer, in the thread that samples: all of it but what learning
    changes at the same time. `generator` samples with the weights that the round was begun with, and `state` is as it
    was then.
    """

    def __init__(self, trainer: OnlineTrainer, generator: Any) -> None:
        self._trainer, self.generator, self.state = trainer, generator, state_as_it_is(trainer)

    def __getattr__(self, name: str) -> Any:
        if name in MOVING:
            raise RolloutError(
                f"rollout_func reads trainer.{name}, which learns meanwhile ({self._trainer.args.overlap}). "
                "Sample with trainer.generator.generate(prompt_ids, n, sampling), which has one version of the weights "
                "for all of a round, or leave that setting out."
            )
        return getattr(self._trainer, name)


@dataclass
class Round:
    """One window's prompts on their way to rewarded groups."""

    number: int  # of the window, counted over all epochs
    version: int  # optimizer steps that the weights have seen which write it
    prompts: list[Example]
    sampled: Future[list[Group]]
    rewarded: Future[dict[str, list[float]]]  # the metrics of sampling and rewards, as a `MetricLog` keeps them
    moment: int = 0  # of sampling, by which its random numbers are drawn; known when it is begun in its thread
    moments: int = 1  # so many, with further prompts


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
        self.ended = threading.Event()  # nobody waits for what was begun
        self.refills = bool(getattr(trainer.args, "dynamic_sampling", False))
        self._sampled_once = False

    def take(self, prompts: Sequence[Example]) -> list[Group]:
        """The rewarded groups of the window that is learned from now; those of the windows after it are begun.

        Raises:
            RolloutError: the window has other prompts than the ones that were sampled for it; an engine that failed.
            RewardError: a reward that failed.
        """
        now = window_of(self.trainer)
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
        groups = self.finished(first)
        self.trainer.rounds += first.moments - 1
        return groups

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
            begun.append(self.begin(window_of(self.trainer), list(prompts[start : start + size]), params, load))
            load = already
        yield from map(self.finished, begun)

    def finished(self, waited: Round) -> list[Group]:
        with self.trainer.clock.part("sampling"):
            groups = waited.sampled.result()
        if groups and groups[0].version == self.trainer.state.global_step:
            self.trainer.compare_sampler(groups)
        with self.trainer.clock.part("rewards"):
            self.trainer._metrics["train"].join(waited.rewarded.result())
        return groups

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
        written = version if trainer.sampled_model is trainer.policy else None  # a teacher's are of no version
        ask = self.asking(log)
        sampled: Future[list[Group]] = Future()

        def reward() -> dict[str, list[float]]:
            if (groups := sampled.result()) and trainer.rewards is not None and not self.refills:
                ask(groups)
            return log.state()

        rewarded = after(sampled, reward) if self.refills else self.rewarding(reward)
        waiting = Round(number, version, prompts, sampled, rewarded, trainer.rounds + number - window_of(trainer))
        if load is None:
            draw = nothing_drawn
        elif self.refills:
            draw = self.refilling(waiting, load, ask, log)
        else:
            draw = trainer.drawing(prompts, trainer.group_size, params, load)

        def sample() -> list[Group]:
            groups: list[Group]
            groups, counted = draw()
            log.add(counted)
            for group in groups:
                group.version = written
            self.lend_until(rewarded)
            return groups

        self.sampling(sample, sampled)
        if load is not None and not self._sampled_once:
            sampled.result()  # an engine may hold its first answer against the policy, which must stand still
            self._sampled_once = True
        return waiting

    def asking(self, log: MetricLog) -> Callable[[list[Group]], None]:
        """What asks the rewards, which see the state of the run as it is now; their metrics go into `log`."""
        trainer, state, ended = self.trainer, state_as_it_is(self.trainer), self.ended

        def ask(groups: list[Group]) -> None:
            if ended.is_set():
                raise RolloutError("The run that asked for these rewards has ended.")
            log.add(trainer.ask(groups, state))

        return ask

    def refilling(
        self, waiting: Round, load: Load, ask: Callable[[list[Group]], None], log: MetricLog
    ) -> Callable[[], Drawn]:
        """What samples a round, and further prompts with the same weights in place of those that teach nothing.

        Their rows are looked up here, in the training thread; the moments of sampling follow those of the round before,
        which are known when that has ended.
        """
        trainer = self.trainer
        most, first = trainer.args.max_resampling_rounds, trainer.rounds
        engine = RoundEngine(trainer.generator, self.ended)
        before = self.rounds[-1] if self.rounds else None
        following = trainer.further_rows(waiting.number, {prompt.row for prompt in waiting.prompts})
        places = list(islice(following, most * len(waiting.prompts)))
        spare = {place: trainer.train_dataset[place] for place in dict.fromkeys(places)}

        def drawn(prompts: list[Example], moment: int, weights: Load) -> list[Group]:
            engine.check()
            params = trainer.sampling(True, moment=moment)
            groups: list[Group]
            groups, counted = trainer.drawing(prompts, trainer.group_size, params, weights)()
            log.add(counted)
            if groups:
                self.rewarding(partial(ask, groups)).result()
            return groups

        def further(rows: list[int]) -> list[Group]:
            waiting.moments += 1
            return drawn([spare[row] for row in rows], waiting.moment + waiting.moments - 1, already)

        def refill() -> Drawn:
            waiting.moment = first if before is None else before.moment + before.moments
            groups = drawn(waiting.prompts, waiting.moment, load)
            return with_further(groups, trainer.has_spread, iter(places), further, most)

        return refill

    # ---- conversations ----------------------------------------------------------------------------------------

    def meanwhile(self) -> tuple[Any, Any]:
        """The engine, and the trainer as it is shown, for rounds that are begun now."""
        engine = RoundEngine(self.trainer.generator, self.ended)
        return engine, TrainerMeanwhile(self.trainer, engine)

    def lend(self, engine: RoundEngine) -> None:
        """Let what is sampled now have environments that no completion without rewards has had, if it is still waited
        for: what is made for a run that has ended nobody would close."""
        if (environments := self.trainer.given["environments"]) is not None:
            environments.lend(engine.check)

    def lend_until(self, rewarded: Future[Any]) -> None:
        """Keep the environments of what was just sampled until its rewards are known."""
        if (environments := self.trainer.given["environments"]) is not None:
            environments.keep(rewarded)

    def clear(self) -> None:
        """Forget what was begun, and stop the conversations that go on."""
        self.ended.set()
        self.ended = threading.Event()
        for lane in (self.sampling, self.rewarding):
            lane.clear()
        if self.trainer.turns_wanted and not self.sampling.is_free(ENDING_SECONDS):
            self.sampling, self.rewarding = Lane("strop-sampling"), Lane("strop-rewards")
        self.rounds.clear()

    def learning(self) -> AbstractContextManager[None]:
        """Within this context the policy learns beside what samples, from the first step of a run to its last: with
        another number of threads sums are rounded otherwise, and a run that is gone on with would have another."""
        shares = self.trainer.args.device.type == "cpu" and self.trainer.args.engine not in ("vllm", "ray")
        return half_of_the_threads() if shares else nullcontext()

    # ---- what a checkpoint holds ------------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """The rounds that wait, as plain values, once they are finished; from one that fails on they are made anew."""
        return list(self._plain_rounds())

    def _plain_rounds(self) -> Iterator[dict[str, Any]]:
        for waiting in self.rounds:
            if not self.is_in_time(waiting.rewarded):
                left = [other.number for other in self.rounds if other.number >= waiting.number]
                self.trainer.say(
                    f"The run is to stop, and the completions of windows {left} are not finished: they are left out of "
                    "the checkpoint, and sampled by the run that goes on from it, from its weights."
                )
                return
            if waiting.rewarded.exception() is not None:  # it is raised when the run comes to it
                return
            groups = [kept(group) for group in waiting.sampled.result()]
            places = {name: getattr(waiting, name) for name in ("number", "version", "moment", "moments")}
            yield {**places, "groups": groups, "metrics": waiting.rewarded.result()}

    def is_in_time(self, rewarded: Future[Any]) -> bool:
        """Wait for a round; of a run that is told to stop no longer than it has."""
        began: float | None = None
        while not wait([rewarded], LOOKING_SECONDS).done:
            if self.trainer.stop_signals.received is None:
                continue
            began = time.monotonic() if began is None else began
            if (patience := patience_of(self.trainer)) is not None and time.monotonic() - began > patience:
                return False
        return True

    def load(self, state: Sequence[dict[str, Any]]) -> None:
        """Take back what `state` gave; rounds of earlier releases, which say less of themselves, are made anew."""
        self.clear()
        for known in takewhile(lambda known: "moment" in known, state):
            prompts, version = self.prompts_of(known["number"]), known["version"]
            groups, first = [], iter(prompts)
            for values in known["groups"]:
                place = values["place"]
                prompt = next(first) if place is None else self.trainer.train_dataset[place]
                text = prompt_of(self.trainer.processing_class, prompt)
                groups.append(taken_up(values, prompt, prompt=text))
            done: tuple[Future[Any], Future[Any]] = Future(), Future()
            done[0].set_result(groups)
            done[1].set_result(known["metrics"])
            self.rounds.append(Round(known["number"], version, prompts, *done, known["moment"], known["moments"]))


def already() -> None:
    """The sampler has the weights."""


def nothing_drawn() -> Drawn:
    """Of a round that learns from given completions."""
    return [], {}


def state_as_it_is(trainer: OnlineTrainer) -> Any:
    """A copy of the run's state, which no step changes."""
    state = copy.copy(trainer.state)
    state.log_history = list(state.log_history)
    return state


def patience_of(trainer: OnlineTrainer) -> float | None:
    """Seconds that the last checkpoint of a run that is told to stop waits for rounds ahead; None: until they end."""
    if (grace := trainer.args.stop_grace) is not None:
        return float(grace) / 2
    return STOPPING_SECONDS if trainer.turns_wanted else None


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
    if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        problems.append("the policy is spread over processes (DeepSpeed, FSDP), and another process samples from it.")
    if args.engine == "vllm" and args.world_size > 1:
        problems.append(
            "several training processes share the server, and one would change its weights while it writes for another."
        )
    if problems:
        raise ConfigError.collect(f"{args.overlap} cannot be used here:", problems)
    return RoundsAhead(trainer, args.max_staleness)
