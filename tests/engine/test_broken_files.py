"""Broken files through every trainer's constructor: the designed error, before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.broken_files import BrokenFile

from strop.errors import StropError
from strop.methods.registry import METHODS
from strop.testing.cases import letters_reward, method_of, rows_for, settings
from strop.testing.tokenizers import toy_tokenizer


class Loaded(Exception):
    """A model was asked for."""


def construct(verb: str, rows: Any, folder: Path, tokenizer: Any) -> None:
    extra: dict[str, Any] = {"teacher_model": "teacher"} if verb == "gkd" else {}
    if method_of(verb).kind == "prompt_only":
        extra["reward_funcs"] = letters_reward
    method_of(verb).trainer()(
        model="model", args=settings(verb, folder), train_dataset=rows, processing_class=tokenizer, **extra
    )


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading anything raises `Loaded`."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise Loaded

    monkeypatch.setattr("strop.engine.parts.load_model", load)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", load)


@pytest.mark.parametrize("verb", [method.verb for method in METHODS])
def test_broken_files(verb: str, all_broken_files: list[BrokenFile], tmp_path: Path, no_model: None) -> None:
    tokenizer = toy_tokenizer("chatml")
    kind = method_of(verb).kind
    sharing = [method.verb for method in METHODS if method.kind == kind]
    files = [broken for broken in all_broken_files if broken.kind == kind]
    wrong = []
    for broken in files[sharing.index(verb) :: len(sharing)]:
        try:
            construct(verb, str(broken.path), tmp_path, tokenizer)
        except StropError as error:
            missing = [name for name in broken.names if name not in str(error)]
            if missing:
                wrong.append(f"{broken.name}: {missing} not in {str(error)[:300]!r}")
        except Exception as error:
            wrong.append(f"{broken.name}: {type(error).__name__}: {error}")
    assert len(files) >= len(sharing) and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("verb", [method.verb for method in METHODS])
def test_the_model_comes_next(verb: str, tmp_path: Path, no_model: None) -> None:
    with pytest.raises(Loaded):
        construct(verb, rows_for("xpo-online" if verb == "xpo" else verb, 4), tmp_path, toy_tokenizer("chatml"))


def test_a_model_init_waits_for_the_rows(tmp_path: Path) -> None:
    """A model made by a function is made after the rows are checked, if the tokenizer is given."""

    def make() -> None:
        raise Loaded

    for rows, wanted in (([{"text": 3}], StropError), ([{"text": "the ant"}], Loaded)):
        with pytest.raises(wanted):
            method_of("sft").trainer()(
                args=settings("sft", tmp_path), train_dataset=rows, processing_class=toy_tokenizer(), model_init=make
            )
