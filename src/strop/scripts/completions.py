"""Callbacks that sample from the model while it trains: completions as a table, and how often they win."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from strop.errors import ConfigError
from strop.online.evaluation_samples import EvaluationSamples
from strop.online.groups import Group
from strop.rewards import Judge

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

DEFAULT_TOKENS = 20
"""Tokens of a completion where no `generation_config` says another number, as in transformers."""


class LogCompletionsCallback(EvaluationSamples):
    """Every `freq` steps: one completion of each evaluation prompt into samples.jsonl, and to W&B and Comet.

    Args:
        trainer: the trainer that the callback is added to; it must have an evaluation set whose rows have prompts.
        generation_config: transformers' `GenerationConfig`; of it max_new_tokens, temperature, top_p, top_k, min_p,
            repetition_penalty and do_sample are read.
        num_prompts: how many prompts, from the first. None: all.
        freq: steps between two logs. None: `eval_steps`.
    """

    def __init__(
        self,
        trainer: BaseTrainer,
        generation_config: Any = None,
        num_prompts: int | None = None,
        freq: int | None = None,
    ) -> None:
        super().__init__(trainer)
        if trainer.eval_dataset is None:
            raise ConfigError(f"{type(self).__name__} samples from evaluation prompts; give the trainer eval_dataset=.")
        self.generation_config, self.num_prompts, self.freq = generation_config, num_prompts, freq
        self.rows: list[list[str]] = []
        self._logged = -1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation itself logs nothing; `freq` does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = int(self.freq or state.eval_steps or 0)
        if not every or state.global_step % every or state.global_step == self._logged:
            return
        self._logged = state.global_step
        groups = self.complete()
        if state.is_world_process_zero and groups:
            self.write(groups)
            texts = [[str(state.global_step), *pair] for pair in self.pairs(groups)]
            self.rows += texts
            send_table(args.report_to, ["step", "prompt", "completion"], self.rows)

    def complete(self) -> list[Group]:
        """One completion of each prompt, by the settings of `generation_config`."""
        return self.draw(list(islice(self.prompts(), self.num_prompts)), **sampling_of(self.generation_config))

    def pairs(self, groups: Sequence[Group]) -> list[tuple[str, str]]:
        """Prompts and completions as texts."""
        decode = self.trainer.processing_class.decode
        return [
            (decode(group.example.prompt_ids), decode(group.completions[0], skip_special_tokens=True))
            for group in groups
        ]


class WinRateCallback(LogCompletionsCallback):
    """At every evaluation: the share of prompts on which the model's completion beats the one from the start.

    The completions to beat are sampled when training begins, from the model as it is then. Logged as `eval_win_rate`.

    Args:
        judge: a `strop.rewards.Judge`, or anything with `judge(prompts, completions, shuffle_order) -> list[int]`.
        trainer: the trainer that the callback is added to.
        generation_config: as for `LogCompletionsCallback`.
        num_prompts: how many prompts, from the first. None: all.
        shuffle_order: handed to a judge that is not strop's own; those have no bias of position.
        use_soft_judge: the mean of P(win) instead of the share of wins; strop's judges have it.
    """

    def __init__(
        self,
        judge: Any,
        trainer: BaseTrainer,
        generation_config: Any = None,
        num_prompts: int | None = None,
        shuffle_order: bool = True,
        use_soft_judge: bool = False,
    ) -> None:
        super().__init__(trainer, generation_config, num_prompts)
        if not isinstance(judge, Judge) and (use_soft_judge or not callable(getattr(judge, "judge", None))):
            raise ConfigError(
                f"judge is a {type(judge).__name__}; give a strop.rewards.Judge, or (without use_soft_judge) an object "
                "with judge(prompts, completions, shuffle_order)."
            )
        self.judge, self.shuffle_order, self.use_soft_judge = judge, shuffle_order, use_soft_judge
        self.first: list[tuple[str, str]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first = self.pairs(self.complete())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step logs nothing; evaluation does."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first:
            return
        groups = self.complete()
        now = self.pairs(groups)
        rate = self.win_rate(
            [text for text, _ in now], [(a, b) for (_, a), (_, b) in zip(self.first, now, strict=True)]
        )
        if state.is_world_process_zero:
            self.write(groups)
        self.trainer.log({"eval_win_rate": rate})

    def win_rate(self, prompts: list[str], pairs: list[tuple[str, str]]) -> float:
        """Share of pairs whose second completion wins; of pairs without a verdict half."""
        if isinstance(self.judge, Judge):
            chances = [0.5 if p is None else 1.0 - p for p in self.judge.probabilities(prompts, pairs)]
            wins = chances if self.use_soft_judge else [0.5 if c == 0.5 else float(c > 0.5) for c in chances]
        else:
            verdicts = self.judge.judge(prompts, [list(pair) for pair in pairs], self.shuffle_order)
            wins = [0.5 if verdict not in (0, 1) else float(verdict) for verdict in verdicts]
        return sum(wins) / len(wins)


def sampling_of(generation_config: Any) -> dict[str, Any]:
    """What strop's samplers take of a `GenerationConfig`."""
    if generation_config is None:
        return {"max_new_tokens": DEFAULT_TOKENS, "temperature": 0.0}
    read = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found = {name: getattr(generation_config, name, None) for name in read}
    settings = {name: value for name, value in found.items() if value is not None}
    if not getattr(generation_config, "do_sample", False):
        settings |= {"temperature": 0.0}
    return {"max_new_tokens": DEFAULT_TOKENS, **settings}


def send_table(report_to: Any, columns: list[str], rows: list[list[str]]) -> None:
    """The table to the trackers that show tables and are in use."""
    if "wandb" in report_to:
        import wandb

        wandb.log({"completions": wandb.Table(columns=columns, data=rows)})
    if "comet_ml" in report_to:
        import comet_ml
        import pandas

        experiment = comet_ml.get_running_experiment()
        if experiment is not None:
            experiment.log_table("completions.csv", pandas.DataFrame(rows, columns=columns))
