"""A whole run in which one write fails, and what is left of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strop.engine.checkpoint import checkpoints, newest_valid, problems_of
from strop.errors import StropError
from strop.report import write_report
from tests.support.crash import Faults, fingerprint, tiny_run

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


def failing_writes(folder: Path, part: slice = slice(None)) -> Iterator[tuple[str, list[str]]]:
    """Fail the writes of a run one by one: which it was, and what went wrong beyond a sentence.

    Afterwards every checkpoint is whole, nothing half written is left, and the run that goes on ends as it would have.
    """
    faults = Faults()
    with faults.counting():
        expected = fingerprint(whole_run(folder / "undisturbed").model)
    writes = list(faults.calls)
    for number in range(1, len(writes) + 1)[part]:
        place, wrong = folder / str(number), []
        try:
            with faults.failing(number):
                whole_run(place)
        except StropError:
            pass
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
        wrong += [f"{path} is not whole" for path in checkpoints(place) if problems_of(path)]
        wrong += [f"leaves {name}" for name in leftovers(place)]
        again = whole_run(place, resume=newest_valid(place)[0] is not None)
        if fingerprint(again.model) != expected:
            wrong.append("the run that was gone on with is another one")
        yield writes[number - 1].replace(str(place), "").replace(str(folder), ""), wrong
        shutil.rmtree(place)
