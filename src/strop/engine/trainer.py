"""The one engine: the only subclass of `transformers.Trainer`. It knows no method.

Per optimizer step: collect the rows (`get_batch_samples`), let the method turn them into trees
(`prepare_step`), count denominators over all ranks, cut micro-batches, score them with the policy and, if the
method has one, the reference, and hand both to the method's `loss`. The parent brings optimizers, schedulers,
callbacks, trackers, FSDP / DeepSpeed and hub push.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from transformers import Trainer, TrainerCallback

from strop.collectives import gather_rows, sum_over_ranks
from strop.data import DatasetKind, TokenizeOptions, plan_micro_batches
from strop.engine import rows, setup
from strop.engine.checkpoint import CheckpointMixin
from strop.engine.evaluation import EvaluationMixin
from strop.engine.metrics import MetricLog
from strop.engine.offloading import offloaded_activations
from strop.engine.precision import in_one_precision
from strop.engine.reference_scores import ReferenceScores
from strop.engine.reference_upkeep import upkeep
from strop.engine.script_seams import ScriptSeams, check_optimizer
from strop.engine.step import default_counts, zero_loss
from strop.engine.windows import StepSampler, StreamWindows, window_loader, worker_options
from strop.losses.reduce import step_loss
from strop.metric import Entry
from strop.model import LayoutChoice, base_model, build_batch, layout_of, score_batch
from strop.model.router import router_coefficient
from strop.records import Batch, Counts, Example, LossOutput, Mean, Scores, StepContext, StepWork, Want
from strop.settings.config import TrainerConfig


class BaseTrainer(ScriptSeams, CheckpointMixin, EvaluationMixin, Trainer):
    """What all fifteen trainers share. A method overrides a handful of hooks, listed first.

    Class attributes: `config_class`; `dataset_kind`, the rows it learns from; `task`, the head it needs ("causal",
    "score" or "step"); `uses_reference`; `coupled`, whether its loss ties the rows of a step to each other.
    """

    config_class: ClassVar[type[TrainerConfig]] = TrainerConfig
    dataset_kind: ClassVar[DatasetKind] = DatasetKind.LANGUAGE_MODELING
    task: ClassVar[str] = "causal"
    uses_reference: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    remembers_reference: ClassVar[bool] = True  # rows come again, so their reference scores are worth keeping
    reference_want: ClassVar[Want] = Want.LOGPS
    reference_in_loss: ClassVar[bool] = True  # False: its scores are part of the reward
    glossary: ClassVar[tuple[Entry, ...]] = ()  # what the method logs beside the keys of `strop.report.glossary`
    evaluation_samples: ClassVar[Callable[[Any], TrainerCallback] | None] = None  # what `generate_during_eval` adds

    # ---- what a method declares -------------------------------------------------------------------------------

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

    def gradient_rows(self, examples: list[Example]) -> list[Example]:
        """The part of the trees that the loss needs once the whole-step statistics are known."""
        return examples

    def rows_worth_computing(self, examples: list[Example]) -> list[Example]:
        """Rows whose gradient can differ from zero; all of them count in the denominators."""
        return examples

    def prepare_step(self, examples: list[Example]) -> list[Example]:
        """Turn the rows of a step into the trees to train on (online methods sample here)."""
        return examples

    def tokenize_options(self) -> TokenizeOptions:
        """How this method's rows become tokens."""
        return rows.tokenize_options(self.args)

    def convert_dataset(self, dataset: Any, name: str) -> Any:
        """Rows as the user gave them -> prepared examples."""
        return rows.prepare_dataset(self, dataset, name)

    # ---- construction -----------------------------------------------------------------------------------------

    def __init__(
        self,
        model: Any = None,
        args: TrainerConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        ref_model: Any = None,
        model_init: Any = None,
        **aliases: Any,
    ) -> None:
        given = setup.resolve_arguments(
            type(self), aliases, processing_class=processing_class, data_collator=data_collator
        )
        args = setup.resolve_config(self.config_class, args)
        parts = setup.resolve_parts(
            self, args, model, given["processing_class"], train_dataset, eval_dataset, model_init,
            quantization_config=quantization_config, peft_config=peft_config, ref_model=ref_model,
        )  # fmt: skip
        self.reference = parts.reference
        self.reports = parts.reports
        self._metrics = {"train": MetricLog(), "eval": MetricLog(), "run": MetricLog()}
        self.step_work: StepWork | None = None  # the latest optimizer step
        self.step_grad_norm: Any = None
        self._step_begin = time.perf_counter()
        self.run_lock: Any = None  # of the folder, once training began
        self.heartbeat: Any = None  # while a run of several ranks is on
        self._random_state_of: str | None = None  # checkpoint whose random state is still to be taken up
        super().__init__(
            model=parts.model,
            args=args,
            data_collator=list,
            train_dataset=parts.train_dataset,
            eval_dataset=parts.eval_dataset,
            processing_class=parts.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[*setup.default_callbacks(args), *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.neftune_noise_alpha = None  # the parent's noise is scaled by the length of the flat row
        if hasattr(self.reference, "model") and not self.is_model_parallel:
            self.reference.model.to(self.args.device)
        check_optimizer(self, optimizers[0])
        setup.replace_progress(self)
        self.reference_scores = ReferenceScores(self) if self.uses_reference else None
        for callback in [*upkeep(self), *setup.evaluation_callbacks(self)]:
            self.add_callback(callback)
        setup.check_layout(self)
        self.router_coef = router_coefficient(base_model(self.policy), self.args.router_aux_loss_coef)
        self.after_init()

    def after_init(self) -> None:
        """Set up what a method needs once the parent is complete."""

    # ---- rows of a step ---------------------------------------------------------------------------------------

    @property
    def rows_per_step(self) -> int:
        """Rows of the dataset that one optimizer step consumes, over all ranks."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise rows.missing_dataset(type(self).__name__)
        where = {"rank": self.args.process_index, "world_size": self.args.world_size}
        batches = self.args.gradient_accumulation_steps
        if not hasattr(self.train_dataset, "__len__"):
            stream = StreamWindows(
                self.train_dataset, self.rows_per_step, batches_per_step=batches, repeat=True, **where
            )
            return window_loader(stream, None, num_workers=self.args.dataloader_num_workers)
        sampler = StepSampler(
            len(self.train_dataset),
            self.rows_per_step,
            batches_per_step=batches,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            shuffle=self.shuffles,
            drop_last=self.args.dataloader_drop_last,
            **where,
        )
        return window_loader(self.train_dataset, sampler, **worker_options(self.args))

    def row_order(self) -> dict[str, Any]:
        """What decides which rows come next: a checkpoint is gone on from only where it is as it was."""
        return {
            "rows": len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,
            "rows of a step (per device x gradient_accumulation_steps x processes)": self.rows_per_step,
            "shuffled": self.shuffles,
            "seed (or data_seed)": self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        }

    @property
    def shuffles(self) -> bool:
        """Whether an epoch's rows come in random order."""
        return self.args.train_sampling_strategy != "sequential"

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """All rows of the next optimizer step as one `StepWork`; the parent's other micro-batches are empty places."""
        batches, self._step_begin = [], time.perf_counter()
        for _ in range(num_batches):
            with contextlib.suppress(StopIteration):
                batches.append(next(epoch_iterator))
        if not batches:
            return [], None
        self._load_rng_state(self._random_state_of)
        work = self.make_work(self.prepare_step(rows.flatten(batches)))
        return [None] * (len(batches) - 1) + [work], None

    def make_work(self, examples: list[Example]) -> StepWork:
        """Count the denominators of a step over all ranks."""
        world = self.args.world_size
        counts = sum_over_ranks({"num_tokens": sum(e.num_tokens for e in examples), **self.counts(examples)}, world)
        work = StepWork(self.rows_worth_computing(examples), counts, log=self.logs_next_step)
        if not work.examples:
            work.examples, work.stand_in = [rows.stand_in(self)], True
        return work

    @property
    def logs_next_step(self) -> bool:
        """Whether the step in progress ends with a log line (costly metrics are computed on those steps only)."""
        every, step = self.state.logging_steps, self.state.global_step + 1
        due = not every or step % every == 0 or step == self.state.max_steps
        return due or (step == 1 and self.args.logging_first_step)

    # ---- forward and backward ---------------------------------------------------------------------------------

    def plan(self, examples: Sequence[Example], rows_at_once: int) -> list[list[Example]]:
        """Cut examples into micro-batches, by tokens where a budget is set, else by rows."""
        budget = self.args.max_tokens_per_micro_batch
        parts = plan_micro_batches(examples, max_tokens=budget, max_trees=None if budget else rows_at_once)
        return [[examples[i] for i in part] for part in parts]

    def build(self, examples: Sequence[Example]) -> Batch:
        """Lay a micro-batch out."""
        layout = self.layout.name if self.args.layout == "auto" else self.args.layout
        return build_batch(examples, layout, want=self.build_want(), device=self.args.device)

    def build_want(self) -> Want:
        """Everything that any pass over a batch may ask for, so that one layout serves all of them."""
        return self.want(True) | (self.reference_want if self.uses_reference else Want(0))

    @property
    def layout(self) -> LayoutChoice:
        """The layout that the model can be scored in, found on first use."""
        return layout_of(self.policy)

    @property
    def policy(self) -> Any:
        """The model that is trained, without distribution wrappers."""
        return self.accelerator.unwrap_model(self.model)

    def complete_model(self, model: Any) -> Any:
        """The module that the optimizer trains: the policy, and what a method trains beside it."""
        return model

    def score(self, model: torch.nn.Module, batch: Batch, log: bool) -> Scores:
        """The policy's scores of one micro-batch."""
        return self.score_with(model, batch, self.want(log), **self.training_options(model))

    def training_options(self, model: torch.nn.Module) -> dict[str, Any]:
        """Keyword arguments of `score_batch` for the policy alone: a router's loss, NEFTune's noise."""
        if not model.training:
            return {}
        return {"aux_loss": self.router_coef > 0, "noise_alpha": self.args.neftune_noise_alpha or 0.0}

    def score_with(self, model: torch.nn.Module, batch: Batch, want: Want, **options: Any) -> Scores:
        """Scores under any model, by the rules that policy and reference share."""
        return in_one_precision(self.accelerator, score_batch, model, batch, want, **self.score_options(), **options)

    @property
    def head_bytes(self) -> int:
        """Bytes of logits that may live at once."""
        return int(self.args.head_memory_mb * 2**20)

    def score_options(self) -> dict[str, Any]:
        """Keyword arguments of `score_batch` that policy and reference share."""
        return {"head_bytes": self.head_bytes, "own_head": self.layout.own_head}

    def context(self, batch: Batch, work: StepWork, training: bool) -> StepContext:
        """What the method's loss sees beside the policy's scores."""
        asks = self.reference_scores is not None and self.reference_in_loss
        ref = self.reference_scores(batch) if asks else None  # type: ignore[misc]
        return StepContext(work.counts, ref=ref, training=training, log=work.log)

    def training_step(
        self, model: torch.nn.Module, inputs: StepWork | None, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a step's micro-batches; returns world_size * this rank's share of the loss."""
        if inputs is None:
            return torch.zeros((), device=self.args.device)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        parts = self.plan(inputs.examples, self._train_batch_size)
        shared = None
        if self.coupled and len(parts) > 1:
            shared = self.whole_step_statistics(model, parts, inputs, training=True)
            parts = [self.gradient_rows(part) for part in parts]
        batches = [self.build(part) for part in parts]
        inputs.parts, inputs.losses, self.step_work = parts, [], inputs
        loss = torch.zeros((), device=self.args.device)
        for index, batch in enumerate(batches):
            with self.micro_batch_sync(model, last=index == len(batches) - 1):
                inputs.losses.append(self.backward_micro_batch(model, batch, inputs, shared, index))
            loss += inputs.losses[-1]
        self.release_memory()
        seen = int(inputs.counts["num_tokens"])
        self.state.num_input_tokens_seen += seen
        self.record_loss(loss)
        self._metrics["train"].add({"step_time": Mean(time.perf_counter() - self._step_begin, 1.0)})
        return loss

    def release_memory(self) -> None:
        """Hand the device's cached memory back, every `torch_empty_cache_steps` steps."""
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0:
            clear_device_cache()

    def backward_micro_batch(self, model: Any, batch: Batch, work: StepWork, shared: Any, index: int) -> torch.Tensor:
        """Score, loss and backward of one micro-batch; returns its detached share of the step's loss."""
        with self.compute_loss_context_manager():
            step = self.context(batch, work, training=True)
            scores = self.score(model, batch, work.log)
            if self.coupled:
                if shared is None:
                    shared = self.gather([self.statistics(scores, batch, step)], work)
                step.statistics, step.rows = shared[0], shared[1].rows(index)
            loss = zero_loss(scores) if work.stand_in else self.reduced_loss(scores, batch, step)
        kwargs = {"scale_wrt_gas": False} if self.accelerator.distributed_type == DistributedType.DEEPSPEED else {}
        self.accelerator.backward(loss, **kwargs)
        return loss.detach()

    def reduced_loss(self, scores: Scores, batch: Batch, step: StepContext) -> torch.Tensor:
        """This micro-batch's share of the step's loss, times the number of ranks."""
        output = self.loss(scores, batch, step)
        setup.add_router_loss(self.router_coef, scores, output, batch)
        self._metrics["train"].add(output.metrics)
        return step_loss(output.terms, step.counts, world_size=self.args.world_size)

    def whole_step_statistics(self, model: Any, parts: list[list[Example]], work: StepWork, training: bool) -> Any:
        """Statistics over all micro-batches and ranks, from a forward pass without gradient (a single micro-batch takes
        them from the pass with gradient)."""
        statistics: list[dict[str, torch.Tensor]] = []
        with torch.no_grad():
            for part in parts:
                part = self.statistics_rows(part)
                if not part:
                    statistics.append({})
                    continue
                batch = self.build(part)
                step = self.context(batch, work, training)
                statistics.append(self.statistics(self.score(model, batch, False), batch, step))
        return self.gather(statistics, work, training)

    def gather(self, parts: list[dict[str, torch.Tensor]], work: StepWork, training: bool = True) -> Any:
        if work.stand_in:
            parts = [{name: values[:0] for name, values in part.items()} for part in parts]
        gathered = gather_rows(parts, self.args.world_size, self.args.device)
        statistics = self.reduce_statistics(gathered.values, training)
        if training:
            self.advance(statistics)
        return statistics, gathered

    @contextlib.contextmanager
    def micro_batch_sync(self, model: torch.nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged between ranks on the last micro-batch of a step only."""
        if last:
            yield
            return
        state = self.accelerator.gradient_state
        synced = state.sync_gradients
        state._set_sync_gradients(False)
        with self.accelerator.no_sync(model):
            yield
        state._set_sync_gradients(synced)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """The parent's mixed precision, and activations kept in host memory where that is asked for."""
        stack = super().compute_loss_context_manager()
        if self.args.activation_offloading:
            stack.enter_context(offloaded_activations())
        return stack

    # ---- bookkeeping of the parent ----------------------------------------------------------------------------

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        self.step_grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.step_grad_norm

    def record_loss(self, loss: torch.Tensor) -> None:
        world = self.args.world_size
        self._metrics["train"].add({"loss": Mean(loss / world, 1 / world)})
        known = loss.isfinite()  # a step that is left out has no loss
        self._metrics["run"].add({"train_loss": Mean(loss.where(known, 0.0) / world, known / world)})

    def floating_point_ops(self, inputs: StepWork | None) -> int:
        if not isinstance(inputs, StepWork):
            return 0
        if not hasattr(self, "_num_parameters"):
            self._num_parameters = sum(p.numel() for p in self.model.parameters())
        return 6 * self._num_parameters * inputs.num_tokens

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Tokens are counted in `training_step`, over all ranks."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log to a training line, then hand it to the callbacks; at the end of a run
        the mean loss of all its steps, those before a resume too."""
        if "loss" in logs:
            logs = {**logs, **self.derived_metrics(self._metrics["train"].drain(world_size=self.args.world_size))}
            logs["num_tokens"] = self.state.num_input_tokens_seen
        if "train_loss" in logs:
            logs.update(self._metrics["run"].drain(world_size=self.args.world_size))
        super().log(logs, start_time)

    def layout_text(self) -> str:
        """Which layout is used and why, for the run's record."""
        if self.args.layout != "auto":
            return f"{self.args.layout} (set by layout)"
        return f"{self.layout.name} ({self.layout.reason})"

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics that follow from others once those are means; methods extend it."""
        return metrics

    def prepare_stand_in(self, example: Example) -> Example:
        """A trainable tree from a row, for a rank without rows; online methods give it completions."""
        return example
