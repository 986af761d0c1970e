"""The fifteen methods: command-line verb -> where its trainer and config live. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """One row of the registry; module, trainer and config follow from the verb and the class prefix."""

    verb: str
    prefix: str
    summary: str

    @property
    def module(self) -> str:
        return f"strop.methods.{self.verb.replace('-', '_')}"

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
    Method("sft", "SFT", "learn from demonstrations"),
    Method("reward", "Reward", "train a reward model on preference pairs"),
    Method("dpo", "DPO", "learn from preference pairs against a reference model"),
    Method("kto", "KTO", "learn from completions labelled good or bad"),
    Method("orpo", "ORPO", "likelihood and preference in one stage, without a reference"),
    Method("cpo", "CPO", "preference pairs without a reference (CPO, SimPO, AlphaPO)"),
    Method("bco", "BCO", "a classifier between good and bad completions"),
    Method("ppo", "PPO", "policy gradient with a critic"),
    Method("grpo", "GRPO", "policy gradient with a group of completions as baseline"),
    Method("rloo", "RLOO", "REINFORCE with the other completions as baseline"),
    Method("online-dpo", "OnlineDPO", "sample pairs, let a reward or judge choose, learn from them"),
    Method("nash-md", "NashMD", "play against a mixture of policy and reference"),
    Method("xpo", "XPO", "explore away from the reference; offline: exponential loss on pairs"),
    Method("gkd", "GKD", "distil a teacher, also on the student's own completions"),
    Method("prm", "PRM", "train a model that judges every step of a solution"),
)

BY_VERB = {method.verb: method for method in METHODS}
BY_CLASS = {name: method for method in METHODS for name in (method.trainer_name, method.config_name)}
