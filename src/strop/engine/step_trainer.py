"""One optimizer step, in twelve stations; `docs/design.md` says why each is where it is:

    window -> trees -> counts -> micro-batches -> statistics -> reference -> score -> loss -> reduce -> guard
    -> optimizer -> log

The parent's loop calls `get_batch_samples`, `training_step` and, after its own optimizer step, `log`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from transformers.trainer_utils import IntervalStrategy

from strop.collectives import Gathered, gather_rows, sum_over_ranks
from strop.data import DatasetKind, plan_micro_batches
from strop.engine import rows
from strop.engine.adalora import adalora_config, orthogonality
from strop.engine.guard import Guard
from strop.engine.metrics import MetricLog
from strop.engine.offloading import offloaded_activations
from strop.engine.parts import Facts
from strop.engine.reference_scores import ReferenceScores, scored_again
from strop.engine.sharded_trainer import ShardedTrainer
from strop.engine.sharding import fillers, is_sharded
from strop.engine.step import MicroBatch, add_router_loss, default_counts, in_training, step_counts, zero_loss
from strop.engine.step_clock import RunClock, StepClock
from strop.engine.windows import train_loader
from strop.losses.reduce import step_loss
from strop.metric import Entry
from strop.model import LayoutChoice, accepted_layout, build_batch, confirm_layout, layout_of, pays, score_batch
from strop.model.head_memory import bytes_to_come, default_head_bytes
from strop.model.shards import size_of
from strop.records import NOT_ASKED, Batch, Counts, Example, LossOutput, Mean, Scores, StepContext, StepWork, Want
from strop.settings.config import TrainerConfig
from strop.watch.say import say


class StepTrainer(ShardedTrainer):
    """What a method may override, and the step that calls it."""

    config_class: ClassVar[type[TrainerConfig]] = TrainerConfig
    dataset_kind: ClassVar[DatasetKind] = DatasetKind.LANGUAGE_MODELING
    task: ClassVar[str] = "causal"
    uses_reference: ClassVar[bool] = False  # where that depends on the settings: `facts`
    tree_completions: ClassVar[int] = 1  # that a step computes of a tree; 0: a group of num_generations
    coupled: ClassVar[bool] = False
    remembers_reference: ClassVar[bool] = True  # rows come again, so their reference scores are worth keeping
    reference_want: ClassVar[Want] = Want.LOGPS
    reference_in_loss: ClassVar[bool] = True  # False: its scores are part of the reward
    glossary: ClassVar[tuple[Entry, ...]] = ()  # what the class logs beside the keys of `strop.report.glossary`

    reference: Any  # of `strop.model`, or None
    reference_scores: ReferenceScores | None
    guard: Guard
    router_coef: float
    step_work: StepWork | None  # the latest optimizer step
    _metrics: dict[str, MetricLog]  # "train" and "eval" since the last line, "run" since the run began
    clock: StepClock
    run_clock: RunClock
    _last_means: Mapping[str, float]  # of the last log line
    _unwrapped: tuple[Any, Any] = (None, None)  # a model and what of it is trained
    _layout_confirmed: bool = False  # whether the layout was held against real rows

    # ---- what a method declares -------------------------------------------------------------------------------

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        """What preparing model and rows must know; `given` is what the method's own constructor was given."""
        return Facts(cls.__name__, cls.dataset_kind, cls.task, cls.uses_reference, rows.tokenize_options(args))

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        """Unreduced loss terms and metrics of one micro-batch."""
        raise TypeError(f"{type(self).__name__} must define loss(scores, batch, step) -> LossOutput")

    def want(self, log: bool) -> Want:
        """What the forward pass is asked for; `log` says whether costly metrics are wanted this time."""
        return Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT if log else Want.LOGPS

    def counts(self, examples: Sequence[Example]) -> Counts:
        """Denominators that these examples contribute to the step; methods add their own names."""
        return default_counts(examples)

    def statistics(self, scores: Scores, batch: Batch, step: StepContext) -> dict[str, torch.Tensor]:
        """Per-row values that a coupled method needs from the whole step, (B, ...) each; no gradient."""
        return {}

    def reduce_statistics(self, values: dict[str, torch.Tensor], training: bool) -> dict[str, Any]:
        """Whole-step statistics from the rows of all micro-batches and ranks; a question, it changes nothing."""
        return dict(values)

    def advance(self, statistics: dict[str, Any]) -> None:
        """Move running means by the statistics of a training step."""

    def statistics_rows(self, examples: list[Example]) -> list[Example]:
        """The part of the trees that `statistics` needs, where it is computed in a pass of its own."""
        return examples

    def statistics_apart(self, work: StepWork) -> bool:
        """Whether one micro-batch is worth a pass for statistics too; by counts of the step, so that ranks agree."""
        return False

    def gradient_rows(self, examples: list[Example]) -> list[Example]:
        """The part of the trees that the loss needs once the whole-step statistics are known."""
        return examples

    def rows_worth_computing(self, examples: list[Example]) -> list[Example]:
        """Rows whose gradient can differ from zero; all of them count in the denominators."""
        return examples

    def prepare_step(self, examples: list[Example]) -> list[Example]:
        """Turn the rows of a step into the trees to train on (online methods sample here)."""
        return examples

    def prepare_evaluation(self, examples: list[Example]) -> list[Example]:
        """Turn evaluation rows into trees (online methods sample here)."""
        return examples

    def prepare_stand_in(self, example: Example) -> Example:
        """A trainable tree from a row, for a rank without rows; online methods give it completions."""
        return example

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics that follow from others once those are means; methods extend it."""
        return metrics

    def predictions(self, scores: Scores, batch: Batch) -> torch.Tensor | None:
        """What `compute_metrics` gets for a batch's rows, (B, ...): the completions' summed log-probs. None where a
        method keeps something else (online: the rewards of what was sampled)."""
        sums, trees = scores.sum(), len(batch.examples)
        if sums.numel() % trees == 0:
            return sums.view(trees, -1)
        return sums.new_zeros(trees).index_add(0, batch.tree_of, sums)

    def labels(self, batch: Batch) -> list[int] | None:
        """What is right for a batch's rows, one number for each, as `compute_metrics` and `predict` give it: of pairs
        the place of the better completion (0), of labelled rows the label. None where nothing is known."""
        return [0] * len(batch.examples) if self.dataset_kind is DatasetKind.PREFERENCE else None

    # ---- window, trees, counts --------------------------------------------------------------------------------

    @property
    def rows_per_step(self) -> int:
        """Rows of the dataset that one optimizer step consumes, over all ranks."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def window_size(self) -> tuple[int, int]:
        """Rows of the dataset that are fetched at once, over all ranks, and the optimizer steps that they serve."""
        return self.rows_per_step, 1

    @property
    def shuffles(self) -> bool:
        """Whether an epoch's rows come in random order."""
        return self.args.train_sampling_strategy != "sequential"

    def get_train_dataloader(self) -> Any:
        self.settings_are_back()
        if self.train_dataset is None:
            raise rows.missing_dataset(type(self).__name__)
        size, steps = self.window_size()
        return train_loader(self.train_dataset, self.args, size, steps=steps, shuffle=self.shuffles)

    def row_order(self) -> dict[str, Any]:
        """What decides which rows come next: a checkpoint is gone on from only where it is as it was."""
        return {
            "rows": len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
            "rows of a step (per device x gradient_accumulation_steps x processes)": self.rows_per_step,
            "shuffled": self.shuffles,
            "seed (or data_seed)": self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """All rows of the next optimizer step in one place; the places of the parent's other batches stay empty."""
        batches: list[Any] = []
        self.clock.start()
        for _ in range(num_batches):
            with contextlib.suppress(StopIteration), self.clock.part("rows"):
                batches.append(next(epoch_iterator))
        return [*[None] * (len(batches) - 1), rows.flatten(batches)] if batches else [], None

    def make_work(self, examples: list[Example]) -> StepWork:
        """Count the denominators of a step over all ranks."""
        world = self.args.world_size
        counts = sum_over_ranks(step_counts(self, examples), world)
        work = StepWork(self.rows_worth_computing(examples), counts, log=self.logs_next_step or self.begins_window)
        return work if work.examples else self.with_stand_in(work, self.train_dataset)

    def with_stand_in(self, work: StepWork, dataset: Any) -> StepWork:
        """Work of a rank that has no row in a short step: an example of weight zero, so that no rank waits."""
        work.examples, work.stand_in = [self.prepare_stand_in(rows.first_example(dataset))], True
        return work

    @property
    def logs_next_step(self) -> bool:
        """Whether the step in progress is known to end with a log line, or begins an epoch that does."""
        every, step = self.state.logging_steps, self.state.global_step + 1
        return (
            not every
            or step % every == 0
            or (step == 1 and self.args.logging_first_step)
            or step == self.state.max_steps
            or (self.args.logging_strategy == IntervalStrategy.EPOCH and self.begins_window)
        )

    @property
    def begins_window(self) -> bool:
        """Whether no step has ended since the last log line. Costly metrics are computed then, and where a line is
        foreseen: so that every line has them, one too that a callback or an epoch's end asks for."""
        return "loss" not in self._metrics["train"]

    # ---- the step ---------------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step up to the optimizer; returns world_size * this rank's share of the loss.

        `inputs` are the rows of the window, or work made of them; None in the parent's places for other batches.
        """
        loss = torch.zeros((), device=self.args.device)
        if inputs is None:
            return loss
        work = inputs if isinstance(inputs, StepWork) else self.make_work(self.prepare_step(inputs))
        self.step_work = work
        longest = max(work.examples, key=lambda example: example.num_tokens)
        self.guard.alarms.before_step(self.state.global_step + 1, longest.row, longest.num_tokens)
        in_training(model, self.optimizer)
        for micro in self.micro_batches(model, work, training=True):
            share = self.no_loss(micro.scores) if micro.output is None else self.reduce(micro.output, micro)
            if adalora_config(self.policy):  # a term of the whole step, by parts so that ranks exchange gradients once
                share = share + orthogonality(self.policy) / len(work.parts)
            self.backward(share)
            work.losses.append(share.detach())
            loss += work.losses[-1]
        self.guard(work, model, self.state.global_step + 1, gradients=self.gradients)
        self.record(work, loss)
        return loss

    def micro_batches(self, model: Any, work: StepWork, *, training: bool) -> Iterator[MicroBatch]:
        """The one loop of training and evaluation: statistics of the step, then reference, score and loss of a part.

        A part is computed with gradient where autograd is on, and what is done with it while it is the current one
        belongs to it: between ranks, gradients are exchanged on the last part only.
        """
        own = self.plan(work.examples, self.args.train_batch_size if training else self.args.eval_batch_size)
        parts = [*own, *self.fillers(own)]
        shared: Gathered | None = None
        if self.coupled and (len(parts) > 1 or not training or self.statistics_apart(work)):
            shared = self.whole_step_statistics(model, parts, len(own), work, training)
            parts = [self.gradient_rows(part) for part in parts]
        work.parts, work.losses = parts, []
        batches = [self.build(part) for part in parts]
        for index, batch in enumerate(batches):
            with self.gradient_exchange(model, last=not training or index == len(batches) - 1):
                with self.compute_loss_context_manager():
                    step = self.context(batch, work, training)
                    scores = self.score(model, batch, work.log)
                    if self.coupled:
                        if shared is None:  # a single part: the scores of the pass with gradient serve
                            shared = self.gather([self.statistics(scores, batch, step)], work, training)
                        step.statistics, step.rows = shared.values, shared.rows(index)
                    counts = index < len(own) and not work.stand_in
                    output = self.loss(scores, batch, step) if counts else None
                    add_router_loss(output, scores, batch, self.router_coef)
                yield MicroBatch(batch, scores, step, output)

    def no_loss(self, scores: Scores) -> torch.Tensor:
        """A loss of 0 through all that a loss goes through; a method whose loss runs more of the model adds it."""
        return zero_loss(scores)

    def reduce(self, output: LossOutput, micro: MicroBatch) -> torch.Tensor:
        """A part's share of the step's loss, times the number of ranks."""
        computed = Mean(float(micro.batch.input_ids.numel()), float(micro.batch.given_tokens))
        self._metrics["train"].add({"shared_tokens": computed} | output.metrics)
        return step_loss(output.terms, micro.step.counts, world_size=self.args.world_size)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of one part; sums were divided by whole-step counts already."""
        kwargs = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        self.accelerator.backward(loss, **kwargs)

    @property
    def gradients(self) -> Literal["plain", "scaled", "elsewhere"]:
        """Where the guard finds gradients, and as what."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return "elsewhere"
        return "plain" if getattr(self.accelerator, "scaler", None) is None else "scaled"

    def whole_step_statistics(
        self, model: Any, parts: list[list[Example]], own: int, work: StepWork, training: bool
    ) -> Gathered:
        """Statistics over all ranks, without gradient; of this rank's parts the first `own` count."""
        statistics: list[dict[str, torch.Tensor]] = []
        with torch.no_grad():
            for index, part in enumerate(parts):
                statistics.append({})
                counted = self.statistics_rows(part)
                if counted or is_sharded(self.accelerator):
                    batch = self.build(counted or part[:1])
                    step = self.context(batch, work, training)
                    found = self.statistics(self.score(model, batch, False), batch, step)
                    statistics[-1] = found if counted and index < own else {}
        return self.gather(statistics, work, training)

    def gather(self, parts: list[dict[str, torch.Tensor]], work: StepWork, training: bool) -> Gathered:
        if work.stand_in:
            parts = [{name: values[:0] for name, values in part.items()} for part in parts]
        gathered = gather_rows(parts, self.args.world_size, self.args.device)
        statistics = self.reduce_statistics(gathered.values, training)
        if training:
            self.advance(statistics)
        return replace(gathered, values=statistics)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """The parent's mixed precision, and activations kept in host memory where that is asked for."""
        stack = super().compute_loss_context_manager()
        if self.args.activation_offloading:
            stack.enter_context(offloaded_activations(self.policy))
        return stack

    # ---- micro-batches, reference, score ----------------------------------------------------------------------

    def plan(self, examples: Sequence[Example], rows_at_once: int) -> list[list[Example]]:
        """Cut examples into micro-batches, by tokens where a budget is set, else by rows."""
        budget = self.args.max_tokens_per_micro_batch
        parts = plan_micro_batches(examples, max_tokens=budget, max_trees=None if budget else rows_at_once)
        return [[examples[i] for i in part] for part in parts]

    def fillers(self, parts: list[list[Example]]) -> list[list[Example]]:
        return fillers(self.accelerator, parts, lambda: self.prepare_stand_in(rows.first_example(self.train_dataset)))

    def build(self, examples: Sequence[Example]) -> Batch:
        if not self._layout_confirmed:
            self._layout_confirmed = True
            self.confirm_layout(examples)
        layout = accepted_layout(self.policy, self.args.layout, examples)
        # NEFTune's noise is of a row's own length, so it is not drawn for what rows have in common.
        shares = None if self.args.neftune_noise_alpha else pays
        return build_batch(examples, layout, want=self.build_want(), shares=shares, device=self.args.device)

    def build_want(self) -> Want:
        """Everything that any pass over a batch may ask for, so that one layout serves all of them."""
        return self.want(True) | (self.reference_want if self.reference is not None else Want(0))

    @property
    def layout(self) -> LayoutChoice:
        return layout_of(self.policy)

    def confirm_layout(self, examples: Sequence[Example]) -> None:
        """Hold the layout against the first rows; not for a sharded model, which all ranks must run together."""
        if is_sharded(self.accelerator) or self.args.layout == "padded":
            return
        policy = self.policy
        problem = confirm_layout(policy, examples, lambda batch: self.score_with(policy, batch, Want.HIDDEN))
        if problem is not None:
            say(self.args, f"Rows are padded from now on: {problem}.")

    @property
    def policy(self) -> Any:
        """The model that is trained, without distribution wrappers; a search for those walks through all modules."""
        if self._unwrapped[0] is not self.model:
            self._unwrapped = self.model, self.accelerator.unwrap_model(self.model)
        return self._unwrapped[1]

    def context(self, batch: Batch, work: StepWork, training: bool) -> StepContext:
        """What the loss sees beside the policy's scores. The reference goes first, before activations are held."""
        ref = NOT_ASKED
        if self.reference_scores is not None and self.reference_in_loss:
            ref = self.reference_scores(batch, again=scored_again(self, batch, work, training))
        return StepContext(work.counts, ref=ref, training=training, log=work.log)

    def score(self, model: torch.nn.Module, batch: Batch, log: bool) -> Scores:
        return self.score_with(model, batch, self.want(log), **self.training_options())

    def training_options(self) -> dict[str, Any]:
        """Keyword arguments of `score_batch` for the policy alone: a router's loss, NEFTune's noise (in training)."""
        return {"aux_loss": self.router_coef > 0, "noise_alpha": self.args.neftune_noise_alpha or 0.0}

    def score_with(self, model: torch.nn.Module, batch: Batch, want: Want, **options: Any) -> Scores:
        """Scores under any model, by the rules that policy and reference share."""
        return self.in_one_precision(score_batch, model, batch, want, **self.score_options() | options)

    def in_one_precision(self, scoring: Callable[..., Scores], *args: Any, **options: Any) -> Scores:
        """`scoring(*args, **options)` in the precision that the policy is trained in, whatever the model.

        accelerate puts mixed precision around the wrapped policy's forward only; reference, teacher and a policy
        without its wrapper would be scored in another one, and their ratios be off by its rounding.
        """
        with self.accelerator.autocast():
            scores = scoring(*args, **options)
        if self.accelerator.mixed_precision != "no" and scores.hidden is not None:
            scores.hidden = scores.hidden.float()  # as accelerate widens what the wrapped policy returns
        return scores

    @property
    def head_bytes(self) -> int:
        """Bytes of logits that may live at once; where nobody says, by what is free when the first batch is scored."""
        return self._free_share if self.args.head_memory_mb is None else int(self.args.head_memory_mb * 2**20)

    @functools.cached_property
    def _free_share(self) -> int:
        return default_head_bytes(self.args.device, bytes_to_come(self.policy, self.optimizer))

    def score_options(self) -> dict[str, Any]:
        """Keyword arguments of `score_batch` that policy and reference share."""
        return {"head_bytes": self.head_bytes, "own_head": self.layout.own_head}

    # ---- log, and bookkeeping of the parent -------------------------------------------------------------------

    def record(self, work: StepWork, loss: torch.Tensor) -> None:
        """Add a finished step to the metrics and to what was seen; hand the device's cached memory back."""
        every, world = self.args.torch_empty_cache_steps, self.args.world_size
        if every and self.state.global_step % every == 0:
            clear_device_cache()
        self.state.num_input_tokens_seen += int(work.counts["num_tokens"])
        known = loss.isfinite()  # a step that is left out has no loss
        shown = known if self.args.logging_nan_inf_filter else torch.ones_like(known)
        self._metrics["train"].add({"loss": Mean(loss.where(shown, 0.0) / world, shown / world)} | self.clock.metrics())
        self._metrics["run"].add({"train_loss": Mean(loss.where(known, 0.0) / world, known / world)})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log to a training line, then hand it to the callbacks; at the end of a run
        those of its last line, and the mean loss of all its steps, those before a resume too."""
        self.run_clock.correct(logs)
        if "loss" in logs:
            means = self.derived_metrics(self._metrics["train"].drain(world_size=self.args.world_size))
            logs = {**logs, **means, "num_tokens": self.state.num_input_tokens_seen}
            self._last_means = {name: mean for name, mean in means.items() if name != "loss"}
        if "train_loss" in logs:
            logs.update(self._metrics["run"].drain(world_size=self.args.world_size))
            logs = {**self._last_means, **logs}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """Those of the step that was just computed: six for each weight and token."""
        if inputs is None or self.step_work is None:
            return 0
        if not hasattr(self, "_num_parameters"):
            self._num_parameters = sum(map(size_of, self.model.parameters()))
        return 6 * self._num_parameters * self.step_work.num_tokens

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Tokens are counted in `training_step`, over all ranks."""
