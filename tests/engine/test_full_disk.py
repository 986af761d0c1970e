"""Every write of a whole run fails once: that is a sentence, or costs a line of the record, and nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.crash import WRITERS, Faults, tiny_run

from strop.engine.checkpoint import checkpoints, newest_valid, problems_of
from strop.errors import SetupError, StropError
from strop.report import write_report

LEFT_BEHIND = re.compile(r"\.partial|\.tmp$")


def whole_run(folder: Path, *, resume: bool = False) -> Any:
    """Two steps of a method that samples, with everything that a run writes: records, samples, checkpoints, the model,
    its card, the report."""
    trainer = tiny_run(str(folder), "grpo", epochs=1, num_generations=4, logging_steps=1, log_completions=True)
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model()
    trainer.create_model_card()
    write_report(folder)
    return trainer


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if LEFT_BEHIND.search(path.name)]


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a model is loaded from."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    whole_run(folder)
    return folder


def try_every_write(folder: Path, part: slice) -> tuple[int, list[str]]:
    """Fail the writes of a run one by one; how many were tried, and what went wrong."""
    faults, wrong = Faults(), []
    with faults.counting():
        expected = whole_run(folder / "undisturbed")
    writes = list(faults.calls)
    numbers = range(1, len(writes) + 1)[part]
    for number in numbers:
        place = folder / str(number)
        try:
            with faults.failing(number):
                whole_run(place)
        except StropError:
            pass
        except Exception as error:
            wrong.append(f"{writes[number - 1]}: {type(error).__name__}: {error}")
        whole = [path for path in checkpoints(place) if not problems_of(path)]
        wrong += [f"{writes[number - 1]}: {path} is not whole" for path in checkpoints(place) if path not in whole]
        wrong += [f"{writes[number - 1]} leaves {name}" for name in leftovers(place)]
        again = whole_run(place, resume=newest_valid(place)[0] is not None)
        same = all((place / name).read_bytes() == data for name, data in content(folder / "undisturbed").items()
                   if name == "model.safetensors")  # fmt: skip
        if not same or again.state.global_step != expected.state.global_step:
            wrong.append(f"{writes[number - 1]}: the run that was gone on with is another one")
        shutil.rmtree(place)
    return len(numbers), wrong


def test_some_writes_that_fail(tmp_path: Path) -> None:
    tried, wrong = try_every_write(tmp_path, slice(3, None, 60))
    assert tried > 1 and not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_write_that_fails(tmp_path: Path) -> None:
    tried, wrong = try_every_write(tmp_path, slice(None))
    assert tried > 60 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "save", [lambda t: t.save_model(), lambda t: t.create_model_card(), lambda t: write_report(t.args.output_dir)],
    ids=["model", "card", "report"],
)  # fmt: skip
def test_what_is_written_last_is_whole_or_as_it_was(save: Callable[[Any], Any], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    trainer = tiny_run(str(tmp_path / "run"), "grpo", epochs=1, num_generations=4, seed=5)
    faults = Faults(tuple(writer for writer in WRITERS if writer[1] not in ("replace", "rename")))  # take no space
    before = content(tmp_path / "run")
    with faults.counting():
        save(trainer)
    for number in range(1, len(faults.calls) + 1):
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(finished, tmp_path / "run")
        with faults.failing(number), pytest.raises(SetupError, match=r"No space left|full"):
            save(trainer)
        now = content(tmp_path / "run")
        changed = [name for name in before if now.get(name) != before[name]]
        assert not changed and not leftovers(tmp_path / "run"), faults.calls[-1]
