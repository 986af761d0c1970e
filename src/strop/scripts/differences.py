"""What a script written for TRL will find different: names that do another thing, and defaults that are not TRL's.

`strop run` says which of these a script has met, and docs/moving-from-trl.md lists them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

EVERY = "every config"

NAMES: dict[str, str] = {
    "get_training_chat_template": "gives None: trainers find the assistant's turns in any template",
    "setup_chat_format": "keeps the tokenizer's first token, and its padding token where it has one",
    "RichProgressCallback": "is strop's own display with all numbers, in the place of the one that a run has anyway",
    "LogCompletionsCallback": "writes samples.jsonl too, and draws with the run's seed",
    "WinRateCallback": "compares with completions of the model as training began, and a tie counts one half",
    "BEMACallback": "keeps weights and no second model; of an adapter the adapter is averaged",
    "DistillationTrainer": "is GKDTrainer with lmbda=1",
    "PPOTrainer": "puts the score on the last token, whitens over all processes, and counts steps by optimizer steps",
    "NashMDTrainer": "has the unbiased gradient (gradient_form='trl' for TRL's)",
    "CPOTrainer": "adds no NLL to SimPO (cpo_alpha=1.0 for TRL's)",
    "BCOTrainer": "shifts by a balanced moving average (delta_mode='cumulative_pooled' for TRL's)",
    "GKDTrainer": "divides the logits of the divergence by kd_temperature, 1 by default, and samples at temperature",
    "XPOTrainer": "counts a tie as no preference",
    "GRPOTrainer": "reads CISPO's cap as 1 + epsilon_high (cispo_cap='absolute' for TRL's)",
}
"""Name -> how it differs from its namesake, as the end of a sentence that begins with the name."""


@dataclass(frozen=True)
class Default:
    """A setting whose default is not TRL's."""

    config: str
    field: str
    trl: Any
    why: str


CHOSEN = "chosen by the engine, with the same result"
DEFAULTS: tuple[Default, ...] = (
    Default(EVERY, "gradient_checkpointing", True, "it costs a third of the time, and comes where rows do not fit"),
    Default(EVERY, "logging_nan_inf_filter", True, "a loss that is not finite is shown"),
    Default("KTOConfig", "train_sampling_strategy", "sequential", "mismatched pairs do not depend on the order here"),
    Default("GKDConfig", "shuffle_dataset", False, "rows come in random order, as everywhere"),
    Default("OnlineDPOConfig", "max_length", 512, "no prompt is left out unless asked for"),
    Default("OnlineDPOConfig", "vllm_gpu_memory_utilization", 0.55, "one default for all online methods"),
    *(
        Default(config, field, trl, why)
        for config in ("GRPOConfig", "RLOOConfig", "OnlineDPOConfig", "DistillationConfig")
        for field, trl, why in (
            ("vllm_model_impl", "vllm", CHOSEN),
            ("vllm_server_host", "0.0.0.0", "an address to listen at, which some systems cannot be reached by"),
        )
    ),
)


def differing_names(names: Iterable[str]) -> list[str]:
    """A sentence for each of these names that does not do what its namesake does."""
    return [f"{name} {NAMES[name]}." for name in names if name in NAMES]


def differing_settings(configs: Iterable[Any]) -> list[str]:
    """A sentence for each setting that the configs left at a default that is not TRL's."""
    found: dict[str, None] = {}
    for settings in configs:
        name = type(settings).__name__
        for default in (d for d in DEFAULTS if d.config in (EVERY, name) and acts(settings, d)):
            value = getattr(settings, default.field)
            if value == at_default(settings, default.field):
                text = f"{name}.{default.field} is {value!r} by default, and {default.trl!r} in TRL: {default.why}."
                found[text] = None
    return list(found)


def acts(settings: Any, default: Default) -> bool:
    """Whether the setting does anything in this run."""
    return not default.field.startswith("vllm_") or getattr(settings, "engine", None) == "vllm"


def at_default(settings: Any, field: str) -> Any:
    """The value that the setting has where nothing is said: the declared default, as the config reads it."""
    value = type(settings).__dataclass_fields__[field].default
    return False if field == "gradient_checkpointing" and value is None else value
