"""The settings that all fifteen methods share, on top of `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig

from strop.collectives import meet
from strop.errors import ConfigError, did_you_mean
from strop.plain_text import masked
from strop.recipes import find_recipe
from strop.settings import earlier
from strop.settings.devices import device_problems, take_launched_precision, whole_float32_products
from strop.settings.prerequisites import Needs, default_of, unmet
from strop.settings.schema import FriendlyKeywords, Range, config, validate

Layout = Literal["auto", "tree", "packed", "padded"]

UNUSED = {
    "label_smoothing_factor": "It belongs to the Trainer's own cross entropy; use the method's `label_smoothing` "
    "where it has one.",
    "auto_find_batch_size": "Micro-batches are planned from the rows; set `max_tokens_per_micro_batch` to bound "
    "memory.",
    "label_names": "Labels are part of the trees that strop builds; remove it.",
    "length_column_name": "Lengths are known from tokenisation; remove it.",
    "prediction_loss_only": "Evaluation never keeps logits; remove it.",
    "eval_accumulation_steps": "Evaluation keeps sums, not predictions; remove it.",
    "eval_do_concat_batches": "Evaluation keeps sums, not predictions; remove it.",
    "enable_jit_checkpoint": "SIGTERM and SIGINT always save a checkpoint at the end of the step; remove it.",
    "batch_eval_metrics": "Metrics are summed batch by batch already; remove it.",
    "include_for_metrics": "`compute_metrics` gets the method's predictions; remove it.",
    "eval_use_gather_object": "Evaluation keeps sums, not predictions; remove it.",
    "bf16_full_eval": "Evaluation computes as training does; set bf16.",
    "fp16_full_eval": "Evaluation computes as training does; set fp16.",
    "average_tokens_across_devices": "Denominators count over all processes always; remove it.",
    "remove_unused_columns": "Rows keep their columns, and a method reads those that it names; remove it.",
    "dataloader_pin_memory": "Rows are lists of ids until they are laid out, with nothing to pin; remove it.",
    "do_train": "No trainer reads it: call train(), or do not; remove it.",
    "do_predict": "No trainer reads it: call predict(), or do not; remove it.",
    "debug": "Losses and gradients that are not finite are found at every step, and their rows named; remove it.",
    "local_rank": "torchrun and accelerate launch set it in the environment; remove it.",
}
SCORES_ONLY = {
    "generate_during_eval": "This model scores and writes nothing; remove it.",
    "num_completions_to_print": "This model scores and writes nothing; remove it.",
    "head_memory_mb": "This model has no language-model head, whose logits it would bound; remove it.",
}
"""What models with a head for scores do not use."""


LOW_RANK = ("galore", "apollo")
"""How the optimizers begin that `optim_target_modules` is for."""


def rows_dealt_by(accelerator_config: Any) -> list[str]:
    """Names of the settings in `accelerator_config` that are about batches and not at their default."""
    given = accelerator_config if isinstance(accelerator_config, dict) else getattr(accelerator_config, "__dict__", {})
    default = AcceleratorConfig().to_dict()
    untouched = "use_configured_state"
    return [name for name, value in given.items() if name != untouched and value != default.get(name)]


PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Trackers whose package has another name."""


def unknown_trackers(report_to: Any) -> list[str]:
    """A problem for each name in `report_to` that is no tracker, or whose package is not there."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    known = [*INTEGRATION_TO_CALLBACK, "all", "none"]
    asked = {name for name in INTEGRATION_TO_CALLBACK if name in names}
    missing = asked - {*get_available_reporting_integrations()} if asked else set()  # which looks for each on the disk
    return [
        f"report_to={name!r} is not a tracker.{did_you_mean(str(name), known)}"
        if name not in known
        else f"report_to={name!r} needs a package that is not installed: pip install {PACKAGES.get(name, name)}."
        for name in names
        if name not in known or name in missing
    ]


@config
class TrainerConfig(TrainingArguments, metaclass=FriendlyKeywords):
    """Settings shared by every trainer. Everything of `transformers.TrainingArguments` is accepted as well."""

    kl_is_distance: ClassVar[bool] = True  # the metrics named "kl" say how far the policy is from its reference
    headline: ClassVar[tuple[str, ...]] = ()  # metrics that say whether it learns; the terminal shows them first
    quiet: ClassVar[bool] = False  # of an instance: nothing is said but warnings
    given: ClassVar[frozenset[str]] = frozenset()  # of an instance: the settings that a script named, then or later
    complete: ClassVar[bool] = False  # of an instance: whether it is made
    checkpointing_open: ClassVar[bool] = False  # of an instance: whether memory may decide on gradient_checkpointing
    aliases: ClassVar[dict[str, str]] = earlier.ALIASES
    removed: ClassVar[dict[str, str]] = earlier.REMOVED
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **earlier.NEUTRAL,
        "remove_unused_columns": (True,),
        "dataloader_pin_memory": (True,),
        "do_train": (True,),
        "head_memory_mb": (512,),
    }
    """Settings that are not used -> values that ask for nothing of it: TRL's default, an earlier default that files of
    runs still name, or what happens anyway."""
    unused: ClassVar[dict[str, str]] = UNUSED
    needs: ClassVar[dict[str, Needs]] = {"num_completions_to_print": Needs({"generate_during_eval": (True,)})}

    learning_rate: Annotated[float, Range(min=0)] = 1e-6
    """Peak learning rate of AdamW."""
    logging_steps: float = 10
    """Log every so many optimizer steps (a number below 1 is a share of all steps)."""
    logging_nan_inf_filter: bool = False
    """Replace non-finite losses in the log by the running average. Off: a non-finite loss is shown."""
    remove_unused_columns: bool = False
    """Rows keep their columns; a method reads those that it names, and rewards those that they ask for."""
    dataloader_pin_memory: bool = False
    """Rows are lists of ids until a step lays them out, so there is nothing to pin."""
    train_sampling_strategy: Literal["random", "sequential"] = "random"
    """Order of the rows. There is no group_by_length: no padding is computed that it could save."""
    bf16: bool | None = None  # type: ignore[assignment]
    """Train in bfloat16 mixed precision. None: yes on a CUDA device that has it, no on CPU, where it is slower."""

    model_init_kwargs: dict[str, Any] | str | None = None
    """Keyword arguments for `from_pretrained` when the model is given as an id or a path (a dict, or JSON)."""
    trust_remote_code: bool = False
    """Run code that comes with a model repository. Off by default: it executes on your machine."""
    disable_dropout: bool = True
    """Set every dropout of the model to 0, so that policy and reference are compared without noise."""
    chat_template_path: str | None = None
    """File with a jinja chat template; or folder or id of a tokenizer, whose template is taken, with the tokens that it
    is written in (the model's embeddings grow) and the one that ends a turn."""
    eos_token: str | None = None
    """Token that ends a completion. None: the tokenizer's."""
    pad_token: str | None = None
    """Padding token saved with the tokenizer, used by generation elsewhere. None: the tokenizer's, else its EOS."""
    max_length: Annotated[int, Range(min=2)] | None = 1024
    """Most tokens of prompt + one completion. None: no limit."""
    max_prompt_length: Annotated[int, Range(min=1)] | None = None
    """Most tokens of a prompt; longer ones are cut on the left. None: no limit of its own."""
    max_completion_length: Annotated[int, Range(min=1)] | None = None
    """Most tokens of a completion; longer ones are cut on the right. None: no limit of its own."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a too long row stays. Both completions of a pair always keep the same prompt."""
    columns: str | None = None
    """Which columns of the data hold what, where they have other names: `prompt=instruction+input,chosen=better`.
    The texts of several columns are joined by a blank line."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, counted and named in the data report, instead of stopping with an error."""
    dataset_num_proc: Annotated[int, Range(min=1)] | None = None
    """Threads that the tokenizer may use. None: one."""
    max_eval_rows: Annotated[int, Range(min=1)] | None = None
    """Most rows (or packs) of an evaluation: the first of each set. None: all. A stream without end needs a bound."""
    dataset_cache_dir: str | None = None
    """Folder that keeps tokenised rows between runs, keyed by content. None: they are kept for the run."""
    layout: Layout = "auto"
    """How trees are laid out: shared prompts (tree), one sequence per completion without padding (packed), or rows
    with padding (padded). auto: tree where the architecture can, checked against padded on a small example."""
    padding_free: bool = False
    """Insist on a layout without padding, which is the default wherever the architecture allows it."""
    max_tokens_per_micro_batch: Annotated[int, Range(min=1)] | None = None
    """Bound on the tokens computed at once. None: `per_device_train_batch_size` rows at once. Never changes the
    gradient."""
    head_memory_mb: Annotated[int, Range(min=1)] | None = None
    """Megabytes of logits that may live at once in the language-model head; beyond it they are recomputed in chunks.
    None: 512 on a CPU; on a card an eighth of what is free at the first batch, a power of two from 512 to 8192."""
    router_aux_loss_coef: Annotated[float, Range(min=0)] | None = None
    """Weight of the load-balancing loss of mixture-of-experts models. None: what the model's config names; 0: none. It
    is a mean over the tokens that are computed: those of a row but its last, from which nothing is predicted."""
    overwrite_output_dir: bool = False
    """Begin anew in an output_dir that holds another run: its checkpoints and records are removed when training starts.
    False: the new run gets a folder of its own beside it (on the command line: it is refused)."""
    activation_offloading: bool = False
    """Keep activations in host memory between forward and backward (CUDA only)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """When the loss or its gradient is not finite: stop before the weights change, or leave the step out. The rows are
    named and the batch is kept in `output_dir` either way."""
    stop_grace: Annotated[float, Range(min=0)] | None = None
    """Seconds from SIGTERM or SIGINT to the end of the process, at its last checkpoint, where the step in progress and
    its checkpoint take longer. None: the step is waited for."""
    rehearsal: bool | None = None
    """Before the first step, compute the longest rows known, forward and backward, and keep nothing of it: what does
    not fit fails in the first minute. None: where 50 steps or more are to be made."""
    generate_during_eval: bool = False
    """Sample completions for a few evaluation prompts at every evaluation, and write them to samples.jsonl."""
    num_completions_to_print: Annotated[int, Range(min=0)] | None = None
    """Completions shown in the terminal at a time. None: 4."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note what is named, in the arguments of a plain dataclass made of this one too."""
        made = super().__new__(cls)
        positions = [f.name for f in dataclasses.fields(cls) if f.init]
        names = {cls.aliases.get(name, name) for name in kwargs}
        made.__dict__["given"] = frozenset(positions[: len(args)]) | names
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if vars(self).get("complete"):  # a script writes a setting later: it is named, as if it had been given
            self.__dict__["given"] = self.given | {name}

    def __post_init__(self) -> None:
        take_launched_precision(self)
        problems = validate(self)
        problems += self.idle()
        if not problems:  # what follows compares values that have their types
            problems += [*unmet(self), *self.contradictions()]
        if problems:
            raise ConfigError.collect(f"{type(self).__name__} has settings that cannot be used:", problems)
        if self.output_dir is None:
            self.output_dir = f"runs/{type(self).__name__.removesuffix('Config').lower()}"
        if self.bf16 is None:
            self.bf16 = (
                not self.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.use_cpu
            )
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # slower than float32 there, but asked for; the parent would refuse
        if self.disable_tqdm is None:
            self.disable_tqdm = False
        if self.ddp_broadcast_buffers is None:
            self.ddp_broadcast_buffers = False  # ranks may run different numbers of forward passes in a step
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every parameter gets a gradient, also on a rank without rows
        meet(self)
        said = (getattr(self, name, None) for name in ("gradient_checkpointing", "activation_checkpointing"))
        self.__dict__["checkpointing_open"] = not any(value is not None for value in said)
        try:
            with warnings.catch_warnings(), whole_float32_products(self):
                warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
                super().__post_init__()
        except Exception as error:  # whatever the parent's own checks raise
            raise ConfigError(f"{type(self).__name__}: {error}") from None
        self.__dict__["complete"] = True

    @classmethod
    def from_recipe(cls, name: str, **given: Any) -> Self:
        """A config that starts from a paper's settings (docs/papers.md); what is given wins over them."""
        recipe = find_recipe(name, cls.__name__.removesuffix("Config").lower())
        said = {cls.aliases.get(setting, setting) for setting in given}
        return cls(**{**{field: value for field, value in recipe.settings.items() if field not in said}, **given})

    def __getattr__(self, name: str) -> Any:
        """A setting by another of its names, as scripts read it."""
        if name in type(self).aliases:
            return getattr(self, type(self).aliases[name])
        # transformers asks for `__name__` many times a step, and a search for the nearest name takes milliseconds.
        nearest = "" if name.startswith("_") else did_you_mean(name, vars(self))
        raise AttributeError(f"{type(self).__name__} has no setting {name!r}.{nearest}")

    def idle(self) -> list[str]:
        """Problems with settings that this method does not use and that are not at their default.

        Nothing asked for (None, False, an empty list) is no problem where nothing is the default too.
        """
        problems = []
        for f in dataclasses.fields(self):
            value, default = getattr(self, f.name), default_of(f)
            nothing = not value and not default
            neutral = nothing or value in self.neutral.get(f.name, ())
            if f.name in self.unused and value != default and not neutral:
                problems.append(f"{f.name}={value!r} has no effect here. {self.unused[f.name]}")
        return problems

    def contradictions(self) -> list[str]:
        """Problems that involve more than one field. Methods extend the list."""
        problems = unknown_trackers(self.report_to)
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        problems += [f"{name}={getattr(self, name)}: must be >= 1" for name in sizes if getattr(self, name) < 1]
        problems += device_problems(self)
        if self.activation_offloading and not torch.cuda.is_available():
            problems.append(
                "activation_offloading=True needs a CUDA device; on CPU the activations are in host memory already."
            )
        if self.fsdp and (self.use_cpu or not torch.accelerator.is_available()):
            problems.append(
                "fsdp shards over accelerators only: on CPU accelerate passes over it, and each process would hold the "
                "whole model. Remove it; processes on CPU train with data parallelism."
            )
        elif self.fsdp and int(os.environ.get("WORLD_SIZE", 1)) < 2:
            problems.append(
                "fsdp has no other process to share the weights with, and would do nothing; start with torchrun "
                "--nproc_per_node N, or remove it."
            )
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):
            problems.append("fp16=True needs a GPU; on a CPU set bf16=True, or neither, which is faster there.")
        if self.on_nonfinite == "skip" and self.deepspeed:
            problems.append(
                "on_nonfinite='skip' cannot take back a step of DeepSpeed, which holds the gradients; use 'stop'."
            )
        if self.do_eval and self.eval_strategy in ("no", None):
            problems.append("do_eval=True evaluates nothing by itself; set eval_strategy, or call evaluate().")
        if self.optim_target_modules and not str(getattr(self.optim, "value", self.optim)).startswith(LOW_RANK):
            problems.append(
                f"optim_target_modules={self.optim_target_modules!r} names the layers of GaLore and APOLLO, and "
                f"optim={self.optim!r} is neither; remove it."
            )
        if moved := rows_dealt_by(self.accelerator_config):
            problems.append(
                f"accelerator_config: {', '.join(moved)} say how accelerate deals out batches, and strop deals out "
                "the rows of a step itself; remove them."
            )
        if self.padding_free and self.layout == "padded":
            problems.append("padding_free=True and layout='padded' exclude each other; remove one.")
        return problems

    @property
    def method(self) -> str:
        """Name of the method, lower case: `dpo` for DPOConfig."""
        return type(self).__name__.removesuffix("Config").lower()

    def to_dict(self) -> dict[str, Any]:
        """As the parent, with secrets as `***`: trackers and files are given it."""
        return dict(masked(super().to_dict()))

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain values (config.yaml of a run)."""
        values = self.to_dict()
        values.pop("hub_token", None)
        values |= {"eos_token": self.eos_token, "pad_token": self.pad_token}  # no secrets: the parent masks *_token
        if self.checkpointing_open:  # a run that is made of them leaves it to memory too
            values |= dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"))
        return values


@config
class ReferenceConfig(TrainerConfig):
    """Settings of methods that compare the policy with a reference model."""

    removed: ClassVar[dict[str, str]] = {
        name: why for name, why in TrainerConfig.removed.items() if not name.endswith("_adapter_name")
    }
    needs: ClassVar[dict[str, Needs]] = {
        **TrainerConfig.needs,
        "precompute_ref_batch_size": Needs({"precompute_ref_log_probs": (True,)}),
        **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), Needs({"sync_ref_model": (True,)})),
    }

    precompute_ref_log_probs: bool = False
    """Score all rows with the reference before training, so that it need not stay in memory. Kept in `output_dir`,
    and used again by later runs with the same rows and reference."""
    precompute_ref_batch_size: Annotated[int, Range(min=1)] | None = None
    """Rows at once while precomputing. None: `per_device_train_batch_size`."""
    sync_ref_model: bool = False
    """Move the reference towards the policy during training (TR-DPO, arXiv 2404.09656)."""
    ref_model_mixup_alpha: Annotated[float, Range(min=0, max=1)] = 0.6
    """Share of the policy at each move: reference <- alpha * policy + (1 - alpha) * reference."""
    ref_model_sync_steps: Annotated[int, Range(min=1)] = 512
    """Optimizer steps between moves."""
    model_adapter_name: str | None = None
    """Adapter of a PEFT model that is trained. None: the one that is active."""
    ref_adapter_name: str | None = None
    """Another adapter of the same model, which is the reference. None: the trained one as it was at the start."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.precompute_ref_log_probs and self.sync_ref_model:
            problems.append(
                "precompute_ref_log_probs=True and sync_ref_model=True exclude each other: precomputed values would "
                "be stale."
            )
        if self.ref_adapter_name is not None and self.sync_ref_model:
            problems.append(
                f"ref_adapter_name={self.ref_adapter_name!r} and sync_ref_model=True exclude each other: a named "
                "adapter stays as it is."
            )
        return problems
