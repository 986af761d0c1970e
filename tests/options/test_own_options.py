"""Every field that strop declares, moved away from its default: the run changes as it should, or the field is refused.

A field is moved on the method whose config declares it; those of shared configs on DPO, GRPO and Online DPO. On every
other method a shared field is either read by a run or refused; the full product of fields and methods is `slow`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.flips import Flip, NoValue, changed, derived, hints_and_defaults, own_fields, owner, run, value_of
from tests.support.option_table import TABLE, entry

from strop.methods.registry import METHODS
from strop.testing.cases import CASES, make_trainer, method_of, rows_for

HOMES = {
    "TrainerConfig": "dpo",
    "ReferenceConfig": "dpo",
    "OnlineConfig": "grpo",
    "OffPolicyConfig": "grpo",
    "PolicyGradientConfig": "grpo",
    "OnlinePairConfig": "online-dpo",
    "XPOConfig": "xpo-online",
    **{method.config_name: method.verb for method in METHODS if method.verb != "xpo"},
}
"""Class that declares a field -> the case that it is moved on."""


def home(case: str, name: str) -> str:
    declared = owner(method_of(case).config(), name)
    assert declared is not None
    return HOMES[declared.__name__]


EVERYWHERE = [(case, name) for case in CASES for name in own_fields(method_of(case).config())]
WEIGHED = ("max_staleness", "vllm_importance_sampling_correction", "vllm_importance_sampling_clip_max")
ALSO = [
    *(("rloo", name) for name in ("reward_weights", *WEIGHED)),
    *(("ppo", name) for name in WEIGHED[1:]),
    ("ppo", "router_aux_loss_coef"),
    ("online-dpo", "head_memory_mb"),
]
"""Shared fields that a method has code of its own for."""
AT_HOME = [(case, name) for case, name in EVERYWHERE if home(case, name) == case or (case, name) in ALSO]


def check(case: str, name: str, folder: Path) -> None:
    config_class = method_of(case).config()
    flip = entry(case, config_class, name)
    value = value_of(flip, config_class, name)
    aspects, moved = changed(flip, case, folder, name, value)
    assert flip.seen in aspects, f"{name}={value!r} changes {sorted(aspects) or 'nothing'}, not {flip.seen}"
    assert flip.seen == "error" or "error" not in moved, moved["error"]


@pytest.mark.parametrize(("case", "name"), AT_HOME)
def test_a_field_changes_what_it_is_for(case: str, name: str, tmp_path: Path) -> None:
    check(case, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), [pair for pair in EVERYWHERE if pair not in AT_HOME])
def test_a_field_changes_what_it_is_for_in_every_method(case: str, name: str, tmp_path: Path) -> None:
    check(case, name, tmp_path)


def test_every_declared_field_is_moved_at_home() -> None:
    declared = {(owner(method_of(case).config(), name), name) for case, name in EVERYWHERE}
    assert {(owner(method_of(case).config(), name), name) for case, name in AT_HOME} == declared


def test_the_table_names_fields_that_exist() -> None:
    fields = {name for _, name in EVERYWHERE}
    assert not {name for entries in TABLE.values() for name in entries} - fields


@pytest.mark.parametrize("case", ["dpo", "grpo"])
def test_the_same_settings_give_the_same_run(case: str, tmp_path: Path) -> None:
    """Without this, a difference between two runs would say nothing."""
    first, second = (run(Flip(), case, tmp_path / name) for name in ("first", "second"))
    assert first == second


class Shelf:
    """Notes which attributes are read, from `start()` on; `to_dict` reads all of them and counts as none."""

    read: set[str]

    def __getattribute__(self, name: str) -> Any:
        kept = object.__getattribute__(self, "__dict__").get("_noted")
        if kept is not None:
            kept.add(name)
        return object.__getattribute__(self, name)

    def to_dict(self) -> dict[str, Any]:
        kept = self.__dict__.pop("_noted", None)
        try:
            return super().to_dict()  # type: ignore[misc]
        finally:
            if kept is not None:
                self.__dict__["_noted"] = kept


def fields_read(case: str, folder: Path) -> set[str]:
    """Names of the settings that a run of two steps with evaluations reads."""
    config_class = method_of(case).config()
    shelf: type = type(config_class.__name__, (Shelf, config_class), {})
    noted: set[str] = set()
    trainer_class = method_of(case).trainer()

    def build(args: Any, **arguments: Any) -> Any:
        args.__class__ = shelf
        args.__dict__["_noted"] = noted
        return trainer_class(args=args, **arguments)

    make_trainer(
        case, folder, rows=rows_for(case, 8), eval_rows=rows_for(case, 3), trainer_class=build, max_steps=2,
        eval_strategy="steps", eval_steps=1,
    ).train()  # fmt: skip
    return noted


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("dpo", "grpo")])
def test_a_shared_field_is_read_or_refused(case: str, tmp_path: Path) -> None:
    """On methods other than the one where a field is moved: a field that a run does not read is moved here too."""
    config_class = method_of(case).config()
    read = fields_read(case, tmp_path / "reads")
    for name in own_fields(config_class):
        if name not in read and (case, name) not in AT_HOME and not needs_more(case, name):
            check(case, name, tmp_path / name)


def needs_more(case: str, name: str) -> bool:
    """Whether a field acts only beside another setting, so that a plain run need not read it.

    Its code is shared with the method that it is moved on; the product of all methods is `slow`.
    """
    flip = entry(case, method_of(case).config(), name)
    return flip.seen != "error" and (bool(flip.given) or flip.make is not None or flip.before is not None)


def test_a_hint_without_values_needs_an_entry() -> None:
    assert derived(bool, True) is False
    with pytest.raises(NoValue):
        derived(list[str] | None, None)
    for case, name in AT_HOME:
        config_class = method_of(case).config()
        value = value_of(entry(case, config_class, name), config_class, name)
        assert value != hints_and_defaults(config_class)[name][1], f"{case} {name} is moved to its default"
