"""`from strop import X` for what scripts import beside trainers and configs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import strop
from strop.scripts.names import ELSEWHERE, SCRIPT_NAMES


@pytest.mark.parametrize("name", sorted(SCRIPT_NAMES))
def test_a_name_is_where_the_table_says(name: str) -> None:
    assert getattr(strop, name).__module__ == SCRIPT_NAMES[name]


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_is_not_here_says_what_to_use(name: str) -> None:
    assert name not in strop.__all__
    with pytest.raises(ImportError) as error:
        exec(f"from strop import {name}")
    assert name in str(error.value) and ELSEWHERE[name] in str(error.value)


@pytest.mark.parametrize(("wrong", "right"), [("DPOTrainr", "DPOTrainer"), ("ModelConfg", "ModelConfig")])
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ImportError, match=f"Did you mean '{right}'"):
        exec(f"from strop import {wrong}")
    with pytest.raises(AttributeError, match=f"Did you mean '{right}'"):
        getattr(strop, wrong)
    assert not hasattr(strop, wrong)


def test_modules_are_still_imported_from_the_package() -> None:
    code = "from strop import losses, errors; from strop import scripts; import strop.rewards; print(losses.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "strop.losses", run.stderr
