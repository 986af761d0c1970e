"""Every trainer passes `check_trainer`, and every check fails a trainer that has the defect it looks for."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from strop.engine.rows import tokenized
from strop.engine.trainer import BaseTrainer
from strop.errors import ConfigError
from strop.losses import nll_loss
from strop.methods.dpo import DPOTrainer
from strop.methods.kto import KTOTrainer
from strop.methods.sft import SFTTrainer
from strop.records import LossOutput, Mean, Term, Want
from strop.testing import check_trainer
from strop.testing.cases import CASES, make_trainer, method_of, rows_for
from strop.testing.check import CHECKS, TrainerCheckError
from strop.testing.oracles import dpo


@pytest.mark.parametrize("case", CASES)
def test_every_trainer_passes(case: str) -> None:
    results = {result.name: result for result in check_trainer(method_of(case).trainer(), like=case)}
    assert results.keys() == CHECKS.keys()
    assert results["loss_equals_the_formula"].status == results["constants_at_step_zero"].status == "passed"
    assert sum(result.status == "passed" for result in results.values()) >= 9


class WrongFormula(DPOTrainer):
    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        output = super().loss(scores, batch, step)
        return LossOutput([Term(term.values * 0.99, term.per) for term in output.terms], output.metrics)


class ReferenceFromElsewhere(DPOTrainer):
    """As if the reference had been read from disk again."""

    def after_init(self) -> None:
        with torch.no_grad():
            next(self.reference.model.parameters()).mul_(1.01)


class LearnsMaskedTokens(SFTTrainer):
    def build(self, examples: Any) -> Any:
        for example in examples:
            example.loss_mask = None
        return super().build(examples)


class GoesUphill(SFTTrainer):
    """The value of the loss with the opposite gradient."""

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        values = nll_loss(scores.logps)
        return LossOutput([Term(2 * values.detach() - values, "tokens")])


class SeesPadding(SFTTrainer):
    """Log-probs that depend on how far a row is padded."""

    def score(self, model: Any, batch: Any, log: bool) -> Any:
        scores = super().score(model, batch, log)
        if batch.layout == "padded":
            scores.logps = scores.logps + 1e-3 * batch.input_ids.shape[1]
        return scores


class StretchesPositions(SFTTrainer):
    """Packed rows with positions of their own."""

    def build(self, examples: Any) -> Any:
        batch = super().build(examples)
        if batch.layout == "packed":
            batch.position_ids = batch.position_ids * 2
        return batch


class MeanOfMeans(SFTTrainer):
    def counts(self, examples: Any) -> Any:
        return {
            **super().counts(examples),
            "micro_batches": len(self.plan(examples, self.args.per_device_train_batch_size)),
        }

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        return LossOutput([Term(nll_loss(scores.logps) / len(scores.logps), "micro_batches")])


class AdapterStaysOn(DPOTrainer):
    def after_init(self) -> None:
        policy = self.policy

        @contextmanager
        def active(*args: Any) -> Any:
            with torch.no_grad():
                yield policy

        if not hasattr(self.reference, "model"):
            self.reference.active = active


class ReferenceDrifts(DPOTrainer):
    def after_init(self) -> None:
        trainer = self

        class Drift(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                trainer.reference.sync(0.5)

        self.add_callback(Drift())


class Forgets(SFTTrainer):
    """A coefficient that moves with the steps and is in no checkpoint."""

    moves = 0

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        output = super().loss(scores, batch, step)
        self.moves += step.training
        return LossOutput(
            [Term(output.terms[0].values, "tokens", 1 / self.moves if self.moves else 1.0)], output.metrics
        )


class HoldsAllLogits(SFTTrainer):
    """The textbook's loss: logits of all tokens at once."""

    def want(self, log: bool) -> Any:
        return super().want(log) | Want.HIDDEN

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        logps = self.policy.lm_head(scores.hidden).log_softmax(-1)
        return LossOutput([Term(nll_loss(logps.gather(1, batch.targets[:, None])[:, 0]), "tokens")])


class LogsInSecret(SFTTrainer):
    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        output = super().loss(scores, batch, step)
        return LossOutput(output.terms, {**output.metrics, "secret": Mean(1.0, 1.0)})


class TrustsRows(SFTTrainer):
    @classmethod
    def facts(cls, args: Any, given: Any) -> Any:
        def trusting(preparation: Any, dataset: Any, name: str) -> Any:
            return tokenized(preparation, [{"text": row["prompt"] + row["completion"]} for row in dataset], name)

        return replace(super().facts(args, given), convert=trusting)


BROKEN: list[tuple[str, type, dict[str, Any]]] = [
    ("loss_equals_the_formula", WrongFormula, {"oracle": dpo}),
    ("constants_at_step_zero", ReferenceFromElsewhere, {}),
    ("masked_tokens_have_no_gradient", LearnsMaskedTokens, {}),
    ("two_steps_lower_the_loss", GoesUphill, {}),
    ("padding_changes_nothing", SeesPadding, {}),
    ("layouts_agree", StretchesPositions, {}),
    ("accumulated_is_whole", MeanOfMeans, {}),
    ("reference_is_the_start", ReferenceFromElsewhere, {}),
    ("adapter_off_is_a_frozen_copy", AdapterStaysOn, {}),
    ("reference_stands_still", ReferenceDrifts, {}),
    ("no_full_logits", HoldsAllLogits, {}),
    ("resumed_is_never_stopped", Forgets, {}),
    ("logged_metrics_are_declared", LogsInSecret, {}),
    ("broken_row_is_named", TrustsRows, {}),
]


@pytest.mark.parametrize(("check", "broken", "options"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_every_check_fails_what_it_looks_for(check: str, broken: type, options: dict[str, Any]) -> None:
    with pytest.raises(TrainerCheckError, match=f"fails 1 of 1 checks:\n  - {check}: ") as error:
        check_trainer(broken, only=[check], **options)
    (result,) = error.value.results
    assert result.status == "failed" and "Error:" not in result.note.splitlines()[0].split(" gives ")[0]


def test_every_check_is_broken_once() -> None:
    assert {name for name, _, _ in BROKEN} == CHECKS.keys()


def test_masks_of_mismatched_completions_count_in_micro_batches() -> None:
    """KTO cuts its trees in two passes; a mask must survive the cut."""
    (result,) = check_trainer(KTOTrainer, only=["masked_tokens_have_no_gradient"])
    assert result.status == "passed"


class Squared(BaseTrainer):
    """A user's own method: the mean square of the log-probs."""

    def loss(self, scores: Any, batch: Any, step: Any) -> LossOutput:
        return LossOutput([Term(scores.logps.square(), "tokens")])


def test_a_trainer_of_ones_own_brings_make_and_rows() -> None:
    def make(folder: str, *, rows: Any = None, trainer: Any = None, **settings: Any) -> Any:
        from strop.settings.config import TrainerConfig

        base = make_trainer("sft", folder, rows=rows)
        args = TrainerConfig(**{**{k: getattr(base.args, k) for k in KEPT}, "output_dir": folder, **settings})
        return Squared(base.model, args, train_dataset=rows, processing_class=base.processing_class, **(trainer or {}))

    KEPT = (
        "learning_rate",
        "per_device_train_batch_size",
        "save_strategy",
        "disable_tqdm",
        "use_cpu",
        "max_length",
        "logging_steps",
    )
    rows = [{"text": row["prompt"] + row["completion"]} for row in rows_for("sft", 5)]
    results = check_trainer(Squared, make=make, rows=rows)
    passed = {result.name for result in results if result.status == "passed"}
    assert {"accumulated_is_whole", "layouts_agree", "resumed_is_never_stopped", "broken_row_is_named"} <= passed
    with pytest.raises(ConfigError, match="pass make="):
        check_trainer(Squared)


def test_unknown_checks_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'layouts_agree'"):
        check_trainer(DPOTrainer, only=["layouts_agre"])
