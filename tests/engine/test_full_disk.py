"""Every write of a whole run fails once: that is a sentence, or costs a line of the record, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.crash import WRITERS, Faults, tiny_run
from tests.support.full_disk import failing_writes, leftovers, whole_run

from strop.errors import SetupError
from strop.report import write_report


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a model is loaded from."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".html"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    whole_run(folder)
    return folder


def test_a_folder_that_cannot_be_made_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(SetupError, match=r"a-file/run cannot be written: Not a directory"):
        tiny_run(str(tmp_path / "a-file" / "run"))


def test_some_writes_that_fail(tmp_path: Path) -> None:
    found = list(failing_writes(tmp_path, slice(3, None, 60)))
    assert len(found) > 1 and not [entry for entry in found if entry[1]]


@pytest.mark.slow
def test_every_write_that_fails(tmp_path: Path) -> None:
    found = list(failing_writes(tmp_path))
    assert len(found) > 60 and not [entry for entry in found if entry[1]]


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
