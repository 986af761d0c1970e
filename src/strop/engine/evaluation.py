"""Evaluation: losses and metrics over a whole set as one mean, summed batch by batch; no logits are kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from strop.collectives import sum_over_ranks
from strop.engine import rows
from strop.engine.lost_ranks import lost_ranks_named
from strop.engine.windows import StepSampler, StreamWindows, window_loader
from strop.records import Batch, Scores, StepWork


class EvaluationMixin:
    """The parent's evaluation, with its padding, gathering and logit keeping replaced by sums and counts."""

    def predictions(self: Any, scores: Scores, batch: Batch) -> torch.Tensor:
        """What `compute_metrics` gets for the rows of a batch, (B, ...): by default the completions' summed
        log-probs."""
        sums = scores.sum()
        trees = len(batch.examples)
        return (
            sums.view(trees, -1)
            if sums.numel() % trees == 0
            else sums.new_zeros(trees).index_add(0, batch.tree_of, sums)
        )

    def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
        if isinstance(eval_dataset, str):
            dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is not None:
            dataset = rows.ensure_prepared(self, eval_dataset, "eval")
        else:
            dataset = self.eval_dataset
        if dataset is None:
            raise rows.missing_dataset(type(self).__name__, evaluation=True)
        where = {"rank": self.args.process_index, "world_size": self.args.world_size}
        at_once = self.args.eval_batch_size * self.args.world_size
        if not hasattr(dataset, "__len__"):
            return window_loader(StreamWindows(dataset, at_once, batches_per_step=1, **where), None)
        return window_loader(dataset, StepSampler(len(dataset), at_once, shuffle=False, **where))

    get_test_dataloader = get_eval_dataloader

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's evaluation; a rank that is lost meanwhile is named."""
        with lost_ranks_named(self):
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(
        self: Any,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss and metrics over all rows and ranks. The loss uses the denominators of the whole set."""
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        sums: dict[str, list[float]] = {}
        predicted: list[tuple[list[int], np.ndarray]] = []
        num_rows = 0
        self.before_evaluation()
        with torch.no_grad():
            for window in dataloader:
                examples = self.prepare_evaluation(rows.flatten([window]))
                num_rows += len(examples)
                self.evaluate_window(model, examples, sums, predicted)
        self.after_evaluation()
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in self.eval_means(sums).items()}
        num_rows = int(sum_over_ranks({"rows": float(num_rows)}, self.args.world_size)["rows"])
        predictions = self.gather_predictions(predicted) if self.compute_metrics is not None else None
        if predictions is not None:
            extra = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=None))
            metrics |= {
                k if k.startswith(metric_key_prefix) else f"{metric_key_prefix}_{k}": v for k, v in extra.items()
            }
        return EvalLoopOutput(predictions=predictions, label_ids=None, metrics=metrics, num_samples=num_rows)

    def before_evaluation(self: Any) -> None:
        """Called before the first evaluation batch."""

    def after_evaluation(self: Any) -> None:
        """Called after the last evaluation batch."""

    def prepare_evaluation(self: Any, examples: list[Any]) -> list[Any]:
        """Turn evaluation rows into trees (online methods sample here)."""
        return examples

    def evaluate_window(
        self: Any, model: Any, examples: list[Any], sums: dict[str, list[float]], predicted: list[Any]
    ) -> None:
        """Add the loss terms, counts and metrics of one window."""
        counts = sum_over_ranks(self.counts(examples), self.args.world_size) if self.coupled else self.counts(examples)
        work = StepWork(examples, counts, log=True)
        if not examples:
            if self.args.world_size == 1:
                return
            work.examples, work.stand_in = [rows.stand_in(self, evaluation=True)], True
        parts = self.plan(work.examples, self.args.eval_batch_size)
        shared: Any = None
        if self.coupled:
            shared = self.whole_step_statistics(model, parts, work, training=False)
            parts = [self.gradient_rows(part) for part in parts]
        batches = [self.build(part) for part in parts]
        for index, batch in enumerate(batches):
            with self.compute_loss_context_manager():
                step = self.context(batch, work, training=False)
                scores = self.score(model, batch, True)
                if work.stand_in:
                    continue
                if self.coupled:
                    step.statistics, step.rows = shared[0], shared[1].rows(index)
                output = self.loss(scores, batch, step)
            self._metrics["eval"].add(output.metrics)
            for position, term in enumerate(output.terms):
                entry = sums.setdefault(f"{position}:{term.per}", [0.0, 0.0])
                entry[0] += term.weight * float(term.values.detach().sum())
            if self.compute_metrics is not None:
                values = self.predictions(scores, batch).float().cpu().numpy()
                predicted.append(([example.row for example in batch.examples], values))
        if not work.stand_in:
            own = self.counts(examples)
            for key, entry in sums.items():
                entry[1] += own.get(key.split(":", 1)[1], 0.0)

    def eval_means(self: Any, sums: dict[str, list[float]]) -> dict[str, float]:
        """Loss and metrics of a finished evaluation."""
        world = self.args.world_size
        totals = sum_over_ranks({f"{key}|{i}": value[i] for key, value in sums.items() for i in (0, 1)}, world)
        keys = list(dict.fromkeys(name.rsplit("|", 1)[0] for name in totals))
        shares = [totals[f"{key}|0"] / max(totals[f"{key}|1"], 1.0) for key in keys]
        means = {"loss": sum(shares) if shares else math.nan}  # no tree at all (online: no pair): no loss, not loss 0
        return means | self.derived_metrics(self._metrics["eval"].drain(world_size=world))

    def gather_predictions(self: Any, predicted: list[tuple[list[int], np.ndarray]]) -> np.ndarray:
        """Predictions of all ranks in the order of the rows."""
        parts = predicted
        if self.args.world_size > 1:
            everyone: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(everyone, predicted)
            parts = [part for rank in everyone for part in rank]
        order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
        return np.concatenate([values for _, values in parts])[order]
