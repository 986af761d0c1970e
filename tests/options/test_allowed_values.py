"""Every name that a setting may take is a run of its own: it differs from the default, or it is said what it equals."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.flips import Flip, allowed_names, hints_and_defaults, own_fields, owner, plain_run, run
from tests.support.observation import differences
from tests.support.option_table import entry

from strop.losses.names import CPO_TERM_TYPES, DPO_TERM_TYPES
from strop.methods.registry import METHODS
from strop.testing.cases import method_of
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

TEXTS = {("dpo", "loss_type"): DPO_TERM_TYPES, ("cpo", "loss_type"): CPO_TERM_TYPES}
"""Fields whose names are listed beside the losses and not in the hint."""

EQUAL: dict[tuple[str, str, Any], str] = {
    ("sft", "loss_type", "chunked_nll"): "an older name of nll",
    ("sft", "packing_strategy", "bfd-requeue"): "an older name of bfd_split",
    ("dpo", "loss_type", "robust"): "sigmoid, as long as label_smoothing is 0",
    ("dpo", "layout", "tree"): "what auto chooses for this model",
    ("grpo", "loss_type", "bnpo"): "dapo: both are a mean over the tokens of the step",
    ("grpo", "importance_sampling_level", "token"): "what None is",
    **{(verb, "vllm_importance_sampling_mode", "sequence_mask"): "what None is" for verb in ("grpo", "rloo")},
    ("grpo", "engine", "native"): "what auto chooses for this model",
    ("xpo-online", "mode", "online"): "what auto is where a reward is given",
    ("xpo-online", "loss_type", "sigmoid"): "what auto is where a reward is given",
}
"""Case, field, name -> why it equals the default, or another name."""
REFUSED = {
    ("grpo", "engine", "vllm"): "vllm",
    ("grpo", "engine", "ray"): "pip install 'strop[ray]'",
    ("xpo-online", "loss_type", "exponential"): "sigmoid",
    ("xpo-online", "mode", "offline_exponential"): "remove reward_funcs",
}
"""Case, field, name -> a word of the error that answers it in these surroundings."""
GIVEN: dict[tuple[str, str], dict[str, Any]] = {
    ("cpo", "loss_type"): {"cpo_alpha": 1.0},
    ("grpo", "scale_rewards"): {"num_generations": 2},
    ("grpo", "loss_type"): {"num_iterations": 2, "stop_token_ids": list(range(2, 20))},  # lengths differ
    **{
        (verb, "vllm_importance_sampling_mode"): {
            "vllm_importance_sampling_clip_max": 0.05,
            "vllm_importance_sampling_clip_min": 0.01,
        }
        for verb in ("grpo", "rloo")
    },
}
NEEDS: dict[tuple[str, str, Any], dict[str, Any]] = {("dpo", "loss_type", "exo_pair"): {"label_smoothing": 0.001}}
"""Case, field, name -> what the name cannot do without."""
DEFAULTS = {("dpo", "loss_type"): "sigmoid"}


def strange_reference(verb: str, folder: Path) -> dict[str, Any]:
    """A reference that is not the start. At the start all gaps are those of the reference, and AOT compares each with
    itself unless rounding moves one past another."""
    return {
        "trainer": {
            "ref_model": tiny_model("llama", dtype=torch.float64, seed=3, vocab_size=len(toy_tokenizer("plain")))
        }
    }


MAKE = {("dpo", "loss_type"): strange_reference}


def home(method: Any, name: str) -> str | None:
    """The case that a field is tried on: that of the config that declares it."""
    declared = owner(method.config(), name)
    shared = {
        "TrainerConfig": "dpo",
        "ReferenceConfig": "dpo",
        "OnlineConfig": "grpo",
        "OffPolicyConfig": "grpo",
        "PolicyGradientConfig": "grpo",
        "OnlinePairConfig": "online-dpo",
    }
    case = shared.get(declared.__name__, method.verb) if declared else None
    own = case == method.verb
    return ("xpo-online" if case == "xpo" else case) if own else None


def names(method: Any, name: str) -> list[Any]:
    return list(TEXTS.get((method.verb, name), allowed_names(hints_and_defaults(method.config())[name][0])))


FIELDS = [
    (case, name, names(method, name))
    for method in METHODS
    for name in own_fields(method.config())
    if (case := home(method, name)) is not None and names(method, name)
]


@pytest.mark.parametrize(("case", "name", "values"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_name_is_a_run_of_its_own(
    case: str, name: str, values: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed, which is most places
    config_class = method_of(case).config()
    flip = entry(case, config_class, name)
    given, make = {**flip.given, **GIVEN.get((case, name), {})}, MAKE.get((case, name), flip.make)
    flip = dataclasses.replace(flip, given=given, make=make)
    default = DEFAULTS.get((case, name), hints_and_defaults(config_class)[name][1])
    wrong: list[str] = []
    seen: dict[Any, dict[str, Any]] = {"the default": plain_run(flip, case, tmp_path / "default")}
    for index, value in enumerate(values):
        if value == default:
            continue
        this = run(flip, case, tmp_path / str(index), **{name: value}, **NEEDS.get((case, name, value), {}))
        if (word := REFUSED.get((case, name, value))) is not None:
            assert word in this["error"]
            continue
        assert flip.seen == "error" or "error" not in this, this.get("error")
        same = [other for other, that in seen.items() if not differences(this, that) & {flip.seen, "weights"}]
        if bool(same) != ((case, name, value) in EQUAL):
            wrong.append(f"{name}={value!r} equals {same}")
        seen[value] = this
    assert not wrong


def test_names_that_equal_others_are_names() -> None:
    known = {(case, name, value) for case, name, values in FIELDS for value in values}
    assert not (EQUAL.keys() | REFUSED.keys()) - known
    assert isinstance(entry("grpo", method_of("grpo").config(), "engine"), Flip)
