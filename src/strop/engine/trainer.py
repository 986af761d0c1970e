"""The trainer that all methods share: made from its parts, evaluated, saved and gone on with. It knows no method.

`StepTrainer` has the optimizer step and the hooks of a method. The parent of both, `transformers.Trainer`, brings
optimizers, schedulers, callbacks, trackers, FSDP / DeepSpeed and hub push.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from strop.collectives import sum_over_ranks
from strop.disk import refusals_named
from strop.engine import rows
from strop.engine.adalora import AllocateRanks, adalora_config, allocation, take_back_allocation
from strop.engine.arguments import adapter_learning_rate, resolve_arguments
from strop.engine.checkpoint import (
    check_whole,
    draft,
    files_beside,
    find_checkpoint,
    newest_valid,
    publish,
    same_best,
    without_progress_bars,
)
from strop.engine.evaluation import EvaluationSums, own_metrics
from strop.engine.guard import Guard
from strop.engine.heap import KeptHeap
from strop.engine.lost_ranks import Heartbeat, lost_ranks_named
from strop.engine.metrics import LastWindow, MetricLog
from strop.engine.parts import prepare
from strop.engine.preflight import Preflight, layout_text
from strop.engine.reference_scores import ReferenceScores, part_path, parts_until
from strop.engine.reference_upkeep import load_reference, save_reference, upkeep
from strop.engine.run_identity import RunLock, finished_at, folder_for, identity
from strop.engine.run_state import load_rank_state, mean_loss_of_run, save_rank_state
from strop.engine.script_seams import ScriptSeams, check_optimizer
from strop.engine.sharding import is_sharded
from strop.engine.step import step_counts
from strop.engine.step_clock import RunClock, StepClock
from strop.engine.windows import eval_loader
from strop.engine.zero_checkpoints import check_goes_on
from strop.errors import ConfigError, SetupError
from strop.metric import entries_of
from strop.model import ADAPTER_NOTE, as_to_save, layout_of, note_in_card
from strop.model.beside_adapter import FILE, beside_adapter, save_beside
from strop.model.headed import note_loading
from strop.model.router import router_coefficient
from strop.model.saving import load_rest, whole_ranks
from strop.plain_text import masked
from strop.records import StepWork
from strop.settings.config import TrainerConfig
from strop.watch.about import about
from strop.watch.alarms import Alarms
from strop.watch.model_card import write_card
from strop.watch.progress import close_displays, use_display
from strop.watch.run_directory import RunDirectory
from strop.watch.say import say
from strop.watch.still_weights import StillWeights
from strop.watch.stop_signals import StopSignals


class BaseTrainer(ScriptSeams):
    """What all fifteen trainers share. A method overrides a handful of hooks, which `StepTrainer` lists.

    Class attributes: `config_class`; `dataset_kind`, the rows it learns from; `task`, the head it needs ("causal",
    "score" or "step"); `uses_reference`; `coupled`, whether its loss ties the rows of a step to each other.
    """

    evaluation_samples: ClassVar[Callable[[Any], TrainerCallback] | None] = None  # what `generate_during_eval` adds

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
        given: Mapping[str, Any] | None = None,
        **aliases: Any,
    ) -> None:
        named, args = resolve_arguments(
            type(self), args, aliases, processing_class=processing_class, data_collator=data_collator
        )
        given = given or {}
        if args.should_save:
            with refusals_named(Path(str(args.output_dir))):
                Path(str(args.output_dir)).mkdir(parents=True, exist_ok=True)
        parts = prepare(
            args, model, named["processing_class"], train_dataset, eval_dataset, self.facts(args, given),
            model_init=model_init, quantization_config=quantization_config, peft_config=peft_config,
            ref_model=ref_model,
        )  # fmt: skip
        if line := adapter_learning_rate(args, parts.model):
            say(args, line)
        alarms, signals = Alarms(args), StopSignals(args)
        directory = RunDirectory(args, parts.rows.reports, self.run_facts, entries_of(type(self)))
        watching: list[TrainerCallback] = [
            directory, alarms, StillWeights(alarms), LastWindow(), signals,
            *([KeptHeap()] if args.device.type == "cpu" else []),
        ]  # fmt: skip
        super().__init__(
            model=parts.model,
            args=args,
            data_collator=list,
            train_dataset=parts.train_dataset,
            eval_dataset=parts.eval_dataset,
            processing_class=parts.tokenizer,
            compute_metrics=compute_metrics,
            callbacks=[*watching, *(callbacks or [])],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        use_display(self.callback_handler)
        self.neftune_noise_alpha = None  # the parent's noise is scaled by the length of the flat row
        self.given, self.rows, self.reference = given, parts.rows, parts.reference
        self.unsaid_pad, self.run_directory, self.stop_signals = parts.unsaid_pad, directory, signals
        self.guard = Guard(args, alarms, parts.tokenizer)
        self._metrics = {"train": MetricLog(), "eval": MetricLog(), "run": MetricLog()}
        self._last_means = {}
        self.step_work = None
        self.clock, self.run_clock = StepClock(), RunClock()
        self._redirected: str | None = None  # where the parent writes a checkpoint, while it does
        self.run_lock: RunLock | None = None  # of the folder, once training began
        self.heartbeat: Heartbeat | None = None  # while a run of several ranks is on
        if is_sharded(self.accelerator) and not self.is_deepspeed_enabled:
            layout_of(self.policy)  # while its weights are whole
        self.cut_models(self.reference, adapted=adalora_config(self.policy) is not None)
        check_optimizer(*optimizers, self.model, type(self).__name__, self.say)
        self.reference_scores, keeping = None, []
        if self.reference is not None:
            self.reference_scores = ReferenceScores(
                self.reference,
                lambda model, batch: self.score_with(model, batch, self.reference_want),
                lambda: {**self.score_options(), "precision": self.accelerator.mixed_precision},
                remembers=self.remembers_reference and not is_sharded(self.accelerator),
            )
            keeping = upkeep(args, self.reference_scores, self.build, self.train_dataset, self.eval_dataset)
        if adalora_config(self.policy):
            keeping.append(AllocateRanks(self.policy))
        for callback in [*keeping, *self.evaluation_callbacks()]:
            self.add_callback(callback)
        if args.padding_free and args.layout == "auto" and self.layout.name == "padded":
            raise SetupError(f"padding_free=True, but this model can only be scored with padding: {self.layout.reason}")
        self.router_coef = router_coefficient(self.policy, args.router_aux_loss_coef)
        if self.unsaid_pad:
            self.say(ADAPTER_NOTE)
        self.preflight = Preflight(self)
        self.add_callback(self.preflight)
        if beside := list(beside_adapter(self.policy)):
            self.say(
                f"{len(beside)} weights beside the adapter are trained ({beside[0]} ...). They are saved in {FILE}, "
                "which strop reads and PEFT does not: for other tools merge them with the adapter (strop export)."
            )
        self.after_init()

    def run_facts(self) -> dict[str, str]:
        """What the run's page and model card say at their top."""
        return {**about(self.policy, self.reports), "layout": layout_text(self)}

    def evaluation_callbacks(self) -> list[TrainerCallback]:
        """What `generate_during_eval` asks for."""
        if not self.args.generate_during_eval:
            return []
        make = type(self).evaluation_samples
        if make is None:
            raise ConfigError(
                f"generate_during_eval=True, but {type(self).__name__} samples nothing. Remove it, or set "
                "`evaluation_samples = EvaluationSamples` (strop.online.evaluation_samples) in the class."
            )
        return [make(self)]

    def after_init(self) -> None:
        """Set up what a method needs once the parent is complete."""

    # ---- evaluation -------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self.get_test_dataloader(eval_dataset, self.args.max_eval_rows)

    def get_test_dataloader(self, eval_dataset: Any = None, most: int | None = None) -> Any:
        sets = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {}
        if isinstance(eval_dataset, str) and eval_dataset in sets:
            dataset = sets[eval_dataset]
        elif eval_dataset is not None:
            dataset = self.rows.ensure(eval_dataset, "eval")
        else:
            dataset = self.eval_dataset
        if dataset is None:
            raise rows.missing_dataset(type(self).__name__, evaluation=True)
        return eval_loader(dataset, self.args, most)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's evaluation; a rank that is lost meanwhile is named."""
        self.run_clock.start("eval")
        with lost_ranks_named(self):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss and metrics over all rows and ranks, without their logits. The loss uses the denominators of the
        whole set."""
        world, was_training = self.args.world_size, self.model.training
        sums = EvaluationSums(predicts=self.compute_metrics is not None or description == "Prediction")
        self.model.eval()
        with torch.no_grad():
            for window in dataloader:
                self.evaluate_window(self.prepare_evaluation(rows.flatten([window])), sums)
        self.model.train(was_training)
        self.let_go()
        means = sums.mean_loss(world) | self.derived_metrics(self._metrics["eval"].drain(world_size=world))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        predictions, labels = sums.all_predictions(world)
        if self.compute_metrics is not None:
            for name, value in own_metrics(self.compute_metrics, predictions, labels).items():
                metrics[name if name.startswith(metric_key_prefix) else f"{metric_key_prefix}_{name}"] = value
        count = int(sum_over_ranks({"rows": float(sums.rows)}, world)["rows"])
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=metrics, num_samples=count)

    def evaluate_window(self, examples: list[Any], sums: EvaluationSums) -> None:
        """Add the loss terms, counts and metrics of one window."""
        counts = step_counts(self, examples)
        work = StepWork(examples, sum_over_ranks(counts, self.args.world_size))
        if not examples:
            if self.args.world_size == 1:
                return
            work = self.with_stand_in(work, self.train_dataset if self.eval_dataset is None else self.eval_dataset)
        for micro in self.micro_batches(self.model, work, training=False):
            if micro.output is None:
                continue
            self._metrics["eval"].add(micro.output.metrics)
            sums.add(micro.output)
            if sums.predicts and (predicted := self.predictions(micro.scores, micro.batch)) is not None:
                sums.keep(micro.batch.examples, predicted, self.labels(micro.batch))
        sums.count(counts, rows=len(examples))

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """What a method must find again after a resume (running means, coefficients): plain values and tensors."""
        return allocation(self.policy)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        take_back_allocation(self.policy, state)

    def share_extra_state(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """This rank's part of what all ranks of a run on another number of processes gave."""
        return states[0]

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train; `resume_from_checkpoint` is a folder, or True for the newest complete checkpoint of `output_dir`."""
        self.ready_to_learn()
        adapter_learning_rate(self.args, self.policy)  # the settings may have served another trainer since
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        folder = find_checkpoint(resume, self.args.output_dir, self.identity(), self.say) if resume else None
        self.enter_folder(folder)
        assert self.run_lock is not None
        try:
            if folder is not None and (finished := self.finished(folder)) is not None:
                return finished
            return self.train_from(folder, **kwargs)
        finally:
            self.run_lock.release()

    def train_from(self, folder: Path | None, **kwargs: Any) -> TrainOutput:
        """The parent's training from a checkpoint or the beginning, and an end by name where a rank is lost."""
        if folder is None:
            self._metrics["run"] = MetricLog()
            self._last_means = {}
        else:
            self.load_strop_state(folder)
        self.run_clock.start("train")
        try:
            with lost_ranks_named(self):
                result = super().train(resume_from_checkpoint=str(folder) if folder else None, **kwargs)
        except BaseException as error:
            self.run_directory.note_failure(self.state.global_step, error)
            raise
        finally:
            self.stop_signals.restore()
            close_displays(self.callback_handler)
        self.stop_signals.leave()
        return TrainOutput(result.global_step, result.metrics["train_loss"], result.metrics)

    def enter_folder(self, checkpoint: Path | None) -> None:
        """Take the run's folder for this run: a fresh one beside, if another run's checkpoints are in it."""
        args, lock = self.args, None
        where = [args.output_dir]
        if args.process_index == 0:
            new = checkpoint is None and self.run_lock is None
            if new and not args.overwrite_output_dir:
                where = [str(folder_for(args.output_dir, overwrite=False))]
            lock = RunLock(where[0])
            lock.acquire()  # before anything of another run is removed, which may be going on
            if new and args.overwrite_output_dir:
                folder_for(args.output_dir, overwrite=True)
        if args.world_size > 1:
            torch.distributed.broadcast_object_list(where)
        self.run_lock = lock or RunLock(where[0])
        if where[0] != args.output_dir:
            self.say(
                f"{args.output_dir} holds another run; this one begins in {where[0]}. To go on from the "
                "other: resume_from_checkpoint=True (--resume); to begin anew in its place: overwrite_output_dir=True."
            )
            args.output_dir = where[0]

    def finished(self, folder: Path) -> TrainOutput | None:
        """What `train` returned at the end of a run that had ended already, its weights loaded; None if it goes on."""
        args = self.args
        step = finished_at(folder, max_steps=args.max_steps, num_train_epochs=args.num_train_epochs)
        if step is None:
            return None
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        self.say(f"The run of {folder} ended at step {step}; there is nothing left to train.")
        return TrainOutput(step, loss := mean_loss_of_run(folder), {"train_loss": loss})

    def identity(self) -> dict[str, Any]:
        return identity(self.args.method, self.args.to_dict(), self.policy)

    def newest_checkpoint(self) -> Path | None:
        return newest_valid(self.args.output_dir)[0]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self.gathered(put_back=True), whole_ranks(self.policy):
            model = self.model if model in (None, getattr(self.shards, "model", None)) else model
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_rest(model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, if it still is what was written; DeepSpeed reads its own files."""
        best = Path(str(self.state.best_model_checkpoint))
        check_whole(best)
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(best))

    def load_strop_state(self, folder: Path) -> None:
        check_goes_on(folder, self.accelerator)  # first: what else has changed would not help
        same_ranks = load_rank_state(folder, self)
        load_reference(self.args, self.reference, self.policy, folder)
        if self.reference_scores is not None and self.reference_scores.remembers:  # in shards each would know others
            rank = self.args.process_index if same_ranks else None
            for part in parts_until(folder.parent, int(folder.name.rsplit("-", 1)[1]), rank):
                self.reference_scores.load(part)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Let the parent write into a folder beside, add strop's own state and the manifest, then rename."""
        run_dir, step = Path(super()._get_output_dir(trial=trial)), self.state.global_step
        with draft(run_dir, step, first=self.args.should_save, wait=self.wait_for_all) as beside:
            self._redirected = str(beside.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._redirected = None
            save_rank_state(beside, self)
            if self.reference_scores is not None:
                self.reference_scores.save(part_path(run_dir, step, self.args.process_index), new_only=True)
            save_reference(self.args, self.reference, self.policy, beside)
            self.wait_for_all()
            if self.args.should_save:
                publish(beside, run_dir, self.state, run=self.identity(), limit=self.args.save_total_limit)
        same_best(self.state, self.args.world_size)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / beside.name))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent, the whole model or none of it: a full disk leaves what was there before."""
        with self.gathered(keep=self.args.should_save):
            if self._redirected or not self.args.should_save or self.is_deepspeed_enabled:
                super().save_model(output_dir, _internal_call)
                return
            with files_beside(Path(output_dir or str(self.args.output_dir)), "The model") as beside:
                super().save_model(str(beside), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _get_output_dir(self, trial: Any) -> str:
        return self._redirected or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As the parent, from the checkpoint's final place: an upload goes on while training does."""
        if not self._redirected:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As the parent, without its progress bars, without secrets of the settings (the parent pickles them into every
        saved folder), and without the frozen adapter that only serves as reference. The model card says how to load
        what transformers has no class for."""
        names, args = getattr(self.reference, "adapter_names", None), self.args
        self.args = copy.copy(args)
        vars(self.args).update(masked(vars(args)))
        try:
            with without_progress_bars(), as_to_save(self.model):
                if names is None:
                    super()._save(output_dir, state_dict)
                elif args.should_save:
                    folder = Path(output_dir or args.output_dir)
                    self.policy.save_pretrained(folder, selected_adapters=names, state_dict=state_dict)
                    self.processing_class.save_pretrained(folder)
            if args.should_save:
                folder = Path(output_dir or str(args.output_dir))
                write_card(folder, self.card())
                save_beside(self.policy, folder, state_dict)
                if self.unsaid_pad:
                    note_in_card(folder)
        finally:
            self.args = args
        if args.should_save:
            note_loading(self.policy, output_dir or args.output_dir)

    def wait_for_all(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()

    def say(self, line: str) -> None:
        """A line for the user, once, from the first process."""
        say(self.args, line)
