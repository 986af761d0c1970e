"""The fifteen methods, and those of other packages: verb -> where trainer and config live. Nothing heavy is imported.

A package adds a method by an entry point of the group `strop.methods`, `verb = "module:PrefixTrainer"`; a script by
`register`. Its config is `PrefixConfig` in the same module.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strop.errors import ConfigError


@dataclass(frozen=True)
class Advice:
    """When `strop recommend` names a method: for rows of a kind, with one of `have` at hand where any is named.

    Of all that apply, that of the lowest rank is the first choice.
    """

    rows: tuple[str, ...]  # kinds, `DatasetKind`
    rank: int
    reason: str
    have: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the config starts with
    fill: tuple[str, ...] = ()  # settings that a person must fill in
    no_forms: tuple[str, ...] = ()  # of `strop.data.kinds.FORMS`: rows of the kind that it cannot take


@dataclass(frozen=True)
class Method:
    """One row of the registry; module, trainer and config follow from the verb and the class prefix."""

    verb: str
    prefix: str
    summary: str
    home: str = ""  # the module, where it is not this package's
    rows: str = ""  # the kind of rows it learns from, `DatasetKind`; "": the trainer says it
    unrewarded_rows: str = ""  # the kind it learns from where no reward is given, if it can
    advice: tuple[Advice, ...] = ()  # a method of another package may have it in its trainer

    @property
    def module(self) -> str:
        return self.home or f"strop.methods.{self.verb.replace('-', '_')}"

    @property
    def kind(self) -> str:
        """The kind of rows it learns from (a method of another package imports torch for it)."""
        return self.rows or str(self.trainer().dataset_kind)

    @property
    def advised(self) -> tuple[Advice, ...]:
        """When to recommend it (a method of another package imports torch for it)."""
        return self.advice or (tuple(getattr(self.trainer(), "advice", ())) if self.home else ())

    @property
    def trainer_name(self) -> str:
        return f"{self.prefix}Trainer"

    @property
    def config_name(self) -> str:
        return f"{self.prefix}Config"

    def trainer(self) -> Any:
        """The trainer class (imports torch)."""
        return getattr(importlib.import_module(self.module), self.trainer_name)

    def config(self) -> Any:
        """The config class (imports torch)."""
        return getattr(importlib.import_module(self.module), self.config_name)


DEMONSTRATIONS = ("language_modeling", "prompt_completion", "tokenized")
SCORED: dict[str, Any] = {"have": ("reward", "verifier"), "fill": ("reward_funcs",)}
JUDGED: dict[str, Any] = {"have": ("judge",), "fill": ("reward_funcs",)}
TAUGHT: dict[str, Any] = {"have": ("teacher",), "fill": ("teacher_model",)}

METHODS = (
    Method("sft", "SFT", "learn from demonstrations", rows="language_modeling", advice=(
        Advice(DEMONSTRATIONS, 2, "The rows show what to say; SFT learns to say it."),
    )),
    Method("reward", "Reward", "train a reward model on preference pairs", rows="preference", advice=(
        Advice(("preference",), 4, "A reward model made of these pairs scores new answers, so that an online method "
               "can go on from it."),
    )),
    Method("dpo", "DPO", "learn from preference pairs against a reference model", rows="preference", advice=(
        Advice(("preference",), 1, "Pairs say which answer is better; DPO learns that directly, and the reference "
               "keeps the model near its start.", settings={"beta": 0.1}),
    )),
    Method("kto", "KTO", "learn from completions labelled good or bad", rows="unpaired_preference", advice=(
        Advice(("unpaired_preference",), 1, "Each answer is marked good or bad on its own, and KTO needs no pairs.",
               settings={"beta": 0.1}),
        Advice(("stepwise",), 2, "Steps joined to whole answers are labelled answers: good where every step is."),
    )),
    Method("orpo", "ORPO", "likelihood and preference in one stage, without a reference", rows="preference", advice=(
        Advice(("preference",), 2, "It learns from the same pairs without a reference model, and teaches the chosen "
               "answers at the same time."),
    )),
    Method("cpo", "CPO", "preference pairs without a reference (CPO, SimPO, AlphaPO)", rows="preference"),
    Method("bco", "BCO", "a classifier between good and bad completions", rows="unpaired_preference", advice=(
        Advice(("unpaired_preference",), 2, "A classifier between good and bad; its weights help where the prompts of "
               "both differ in kind."),
    )),
    Method("ppo", "PPO", "policy gradient with a critic", rows="prompt_only", advice=(
        Advice(("prompt_only",), 3, "A critic gives credit to single tokens; the most memory, the most to tune.",
               **SCORED),
    )),
    Method("grpo", "GRPO", "policy gradient with a group of completions as baseline", rows="prompt_only", advice=(
        Advice(("prompt_only",), 1, "Sampled answers are scored, and GRPO compares those of one prompt with each "
               "other: no critic to train.", settings={"num_generations": 8}, **SCORED),
    )),
    Method("rloo", "RLOO", "REINFORCE with the other completions as baseline", rows="prompt_only", advice=(
        Advice(("prompt_only",), 2, "As GRPO, with an unbiased baseline and a KL penalty in the reward.", **SCORED),
    )),
    Method("online-dpo", "OnlineDPO", "sample pairs, let a reward or judge choose, learn from them",
           rows="prompt_only", advice=(
        Advice(("prompt_only",), 4, "A judge picks the better of two samples, and DPO learns from the pair.", **JUDGED),
    )),
    Method("nash-md", "NashMD", "play against a mixture of policy and reference", rows="prompt_only", advice=(
        Advice(("prompt_only",), 5, "A judge compares the policy with a mixture of itself and its start.", **JUDGED),
    )),
    Method("xpo", "XPO", "explore away from the reference; or exponential loss on pairs", rows="prompt_only",
           unrewarded_rows="preference", advice=(
        Advice(("prompt_only",), 6, "A judge compares the policy with its start, and a bonus makes it explore.",
               **JUDGED),
    )),
    Method("gkd", "GKD", "distil a teacher, also on the student's own completions", rows="prompt_completion", advice=(
        Advice(DEMONSTRATIONS, 1, "A teacher gives a whole distribution for every token, on the student's own answers "
               "too.", settings={"lmbda": 0.5}, no_forms=("text", "tokens"), **TAUGHT),
        Advice(("prompt_only",), 7, "A teacher corrects the student's own answers, token by token.",
               settings={"lmbda": 1.0}, **TAUGHT),
    )),
    Method("prm", "PRM", "train a model that judges every step of a solution", rows="stepwise", advice=(
        Advice(("stepwise",), 1, "Every step has its label, so a model can learn to say where a solution goes wrong."),
    )),
)  # fmt: skip

BY_VERB = {method.verb: method for method in METHODS}
BY_CLASS = {name: method for method in METHODS for name in (method.trainer_name, method.config_name)}

GROUP = "strop.methods"
"""Entry points by which other packages bring methods."""


def register(method: Method) -> None:
    """Make a method of another package known by its verb; the same one again changes nothing.

    Raises:
        ConfigError: the verb, or a name of its classes, belongs to another method.
    """
    names = (method.trainer_name, method.config_name)
    for known in (BY_VERB.get(method.verb), *(BY_CLASS.get(name) for name in names)):
        if known is not None and known.module != method.module:
            raise ConfigError(
                f"The method '{method.verb}' of {method.module} has a verb or class names that belong to "
                f"'{known.verb}' of {known.module}. Choose another verb and prefix."
            )
    BY_VERB[method.verb] = method
    BY_CLASS.update(dict.fromkeys(names, method))


def register_installed() -> None:
    """Make the methods of installed packages known; one that cannot be is left out with a warning."""
    for point in importlib.metadata.entry_points(group=GROUP):
        module, _, attribute = point.value.partition(":")
        package = point.dist.name if point.dist is not None else module
        if not attribute.endswith("Trainer"):
            warnings.warn(
                f"{package}: {GROUP} '{point.name}' must be 'module:PrefixTrainer'; got {point.value!r}.", stacklevel=2
            )
            continue
        try:
            register(Method(point.name, attribute.removesuffix("Trainer"), f"a method of {package}", module))
        except ConfigError as error:
            warnings.warn(f"{package}: {error}", stacklevel=2)
