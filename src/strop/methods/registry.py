"""The fifteen methods, and those of other packages: verb -> where trainer and config live. Nothing heavy is imported.

A package adds a method by an entry point of the group `strop.methods`, `verb = "module:PrefixTrainer"`; a script by
`register`. Its config is `PrefixConfig` in the same module.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from typing import Any

from strop.errors import ConfigError


@dataclass(frozen=True)
class Method:
    """One row of the registry; module, trainer and config follow from the verb and the class prefix."""

    verb: str
    prefix: str
    summary: str
    home: str = ""  # the module, where it is not this package's
    rows: str = ""  # the kind of rows it learns from, `DatasetKind`; "": the trainer says it

    @property
    def module(self) -> str:
        return self.home or f"strop.methods.{self.verb.replace('-', '_')}"

    @property
    def kind(self) -> str:
        """The kind of rows it learns from (a method of another package imports torch for it)."""
        return self.rows or str(self.trainer().dataset_kind)

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


METHODS = (
    Method("sft", "SFT", "learn from demonstrations", rows="language_modeling"),
    Method("reward", "Reward", "train a reward model on preference pairs", rows="preference"),
    Method("dpo", "DPO", "learn from preference pairs against a reference model", rows="preference"),
    Method("kto", "KTO", "learn from completions labelled good or bad", rows="unpaired_preference"),
    Method("orpo", "ORPO", "likelihood and preference in one stage, without a reference", rows="preference"),
    Method("cpo", "CPO", "preference pairs without a reference (CPO, SimPO, AlphaPO)", rows="preference"),
    Method("bco", "BCO", "a classifier between good and bad completions", rows="unpaired_preference"),
    Method("ppo", "PPO", "policy gradient with a critic", rows="prompt_only"),
    Method("grpo", "GRPO", "policy gradient with a group of completions as baseline", rows="prompt_only"),
    Method("rloo", "RLOO", "REINFORCE with the other completions as baseline", rows="prompt_only"),
    Method(
        "online-dpo", "OnlineDPO", "sample pairs, let a reward or judge choose, learn from them", rows="prompt_only"
    ),
    Method("nash-md", "NashMD", "play against a mixture of policy and reference", rows="prompt_only"),
    Method("xpo", "XPO", "explore away from the reference; or exponential loss on pairs", rows="prompt_only"),
    Method("gkd", "GKD", "distil a teacher, also on the student's own completions", rows="prompt_completion"),
    Method("prm", "PRM", "train a model that judges every step of a solution", rows="stepwise"),
)

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
