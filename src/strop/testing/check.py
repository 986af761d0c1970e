"""`check_trainer(MyTrainer)`: every check that applies to a trainer, in the manner of scikit-learn's
check_estimator."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import ConfigError, did_you_mean
from strop.records import Row
from strop.testing import law_checks, loss_checks, memory_checks, reference_checks, run_checks
from strop.testing.oracles import Oracle
from strop.testing.subject import NotApplicable, Subject, case_like

Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        loss_checks.loss_equals_the_formula,
        loss_checks.constants_at_step_zero,
        loss_checks.masked_tokens_have_no_gradient,
        loss_checks.two_steps_lower_the_loss,
        law_checks.padding_changes_nothing,
        law_checks.layouts_agree,
        law_checks.accumulated_is_whole,
        reference_checks.reference_is_the_start,
        reference_checks.adapter_off_is_a_frozen_copy,
        reference_checks.reference_stands_still,
        memory_checks.no_full_logits,
        run_checks.resumed_is_never_stopped,
        run_checks.logged_metrics_are_declared,
        run_checks.broken_row_is_named,
    )
}
"""Name -> check, in the order they run."""


@dataclass(frozen=True)
class CheckResult:
    """How one check went."""

    name: str
    status: str  # "passed", "failed" or "not applicable"
    note: str  # why it failed or does not apply
    seconds: float


class TrainerCheckError(AssertionError):
    """At least one check failed; `results` has all of them."""

    def __init__(self, trainer: str, results: list[CheckResult]) -> None:
        self.results = results
        failed = [result for result in results if result.status == "failed"]
        lines = [f"{trainer} fails {len(failed)} of {len(results)} checks:"]
        super().__init__("\n".join([*lines, *(f"  - {result.name}: {result.note}" for result in failed)]))


def check_trainer(
    trainer_class: type,
    *,
    rows: Sequence[Row] | None = None,
    make: Callable[..., Any] | None = None,
    oracle: Oracle | None = None,
    like: str | None = None,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    folder: str | Path | None = None,
) -> list[CheckResult]:
    """Run every check that applies to a trainer class on tiny models, on CPU.

        from strop.testing import check_trainer
        check_trainer(MyDPOTrainer)

    Args:
        trainer_class: one of strop's trainers, a subclass of one, or any subclass of `BaseTrainer` with `make`.
        rows: rows it learns from, 4 or more, uneven in length. None: those of the method it derives from.
        make: `make(folder, *, rows=None, trainer=None, **settings) -> trainer`, with `trainer` further constructor
            arguments and `settings` fields of its config; on a float64 model without dropout, so that numbers agree
            to 1e-9. None: as for the method it derives from (`strop.testing.cases.make_trainer`).
        oracle: the loss by hand, `(scene) -> scalar tensor with gradient` (see `strop.testing.scene`). None: that of
            the method it derives from, if it does not override `loss`.
        like: one of `strop.testing.cases.CASES`, whose rows and settings to take. None: found from the bases.
        only, skip: names of checks (the keys of `CHECKS`).
        folder: where runs are written. None: a temporary folder.

    Returns:
        a `CheckResult` for each check.

    Raises:
        TrainerCheckError: a check failed; the message names all that did, and why.
        ConfigError: an unknown check, or a class that cannot be made without `make` and `rows`.
    """
    if unknown := [name for name in {*(only or ()), *skip} if name not in CHECKS]:
        raise ConfigError.collect(
            "These checks do not exist:", [f"{name}.{did_you_mean(name, CHECKS)}" for name in unknown]
        )
    if like is None:
        like = "" if make is not None and rows is not None else case_like(trainer_class)
    chosen = [name for name in CHECKS if name not in skip and (only is None or name in only)]
    with tempfile.TemporaryDirectory() as temporary:
        results = []
        for name in chosen:
            place = Path(folder or temporary) / name
            results.append(run_check(name, Subject(trainer_class, like, place, rows, make, oracle)))
    if any(result.status == "failed" for result in results):
        raise TrainerCheckError(trainer_class.__name__, results)
    return results


def run_check(name: str, subject: Subject) -> CheckResult:
    """One check, with what trainers print kept out of the way."""
    start, status, note = time.perf_counter(), "passed", ""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[name](subject)
        except NotApplicable as reason:
            status, note = "not applicable", str(reason)
        except AssertionError as error:
            status, note = "failed", str(error)
        except Exception as error:
            status, note = "failed", f"{type(error).__name__}: {error}"
    return CheckResult(name, status, note, time.perf_counter() - start)
