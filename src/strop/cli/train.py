"""The training verbs: `strop dpo --model M --dataset FILE ...`, one code path for all methods."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from strop.cli.ending import train_and_save
from strop.cli.flags import Flag, help_page, parse
from strop.errors import ConfigError, SetupError, did_you_mean
from strop.methods.registry import BY_VERB, Method

RUN_FLAGS = (
    Flag("model", str, help="Model to train: hub id, folder, GGUF file, or adapter folder. Required."),
    Flag("dataset", str, help="Training rows: .jsonl, .json, .parquet, .csv, .arrow, a folder, or a hub id. Required."),
    Flag(
        "eval_dataset", str, help="Rows for evaluation, in the same forms. Evaluated every eval_steps and at the end."
    ),
    Flag("tokenizer", str, help="Tokenizer, if it is not the model's own."),
    Flag("recipe", str, help="Start from a paper's settings (docs/papers.md); what is given wins over them."),
    Flag("dtype", str, help="Weights' precision: float32, bfloat16, float16, auto."),
    Flag(
        "resume",
        bool | str,
        default=False,
        help="Continue from the newest complete checkpoint of output_dir, or from a folder.",
    ),
    Flag("quiet", bool, default=False, help="Say nothing but warnings, and at the end where the model is."),
    Flag("dry_run", bool, default=False, help="Do everything up to the first step, rehearse it, and write nothing."),
)
LORA_FLAGS = (
    Flag("lora", bool, default=False, help="Train a low-rank adapter instead of all weights."),
    Flag("lora_r", int, default=16, help="Rank of the adapter."),
    Flag("lora_alpha", int, default=32, help="Scale of the adapter (the update is multiplied by lora_alpha / lora_r)."),
    Flag("lora_dropout", float, default=0.0, help="Dropout on the adapter's input."),
    Flag("lora_target_modules", list[str] | str, default="all-linear", help="Modules that get an adapter."),
    Flag("load_in_4bit", bool, default=False, help="Load the base model in 4-bit NF4 (needs strop[quant])."),
    Flag("load_in_8bit", bool, default=False, help="Load the base model in 8-bit (needs strop[quant])."),
)
USED_FIRST = (
    "model", "dataset", "eval_dataset", "ref_model", "teacher_model", "reward_funcs", "output_dir", "resume",
    "dry_run", "quiet", "lora", "load_in_4bit", "learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "beta", "loss_type", "packing",
    "num_generations", "max_completion_length", "temperature", "logging_steps", "eval_steps", "save_steps",
    "report_to", "seed",
)  # fmt: skip
"""Flags that the help shows when it is not asked for more."""
NAME_ALIASES = {
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "use_peft": "lora",
    "train_dataset": "dataset",
}


def run(verb: str, argv: list[str]) -> int:
    """Parse, check what can be checked at once, train, save, and say where everything is."""
    method = BY_VERB[verb]
    if "--help" in argv or "-h" in argv:
        topic = argv[argv.index("--help" if "--help" in argv else "-h") + 1 :]
        print(help_for(method, topic[0] if topic else ""))
        return 0
    sys.path.insert(0, os.getcwd())  # so that --reward_funcs finds modules beside, as `python script.py` would
    early_checks(argv)
    quiet_loading()
    config_class, flags = method.config(), {flag.name: flag for group in flag_groups(method).values() for flag in group}
    values = parse(argv, flags, {**NAME_ALIASES, **config_class.aliases}, verb)
    own = {flag.name: values.pop(flag.name, flag.default) for flag in (*RUN_FLAGS, *LORA_FLAGS, *model_flags(method))}
    if missing := [name for name in ("model", "dataset") if not own[name]]:
        raise ConfigError(f"{' and '.join('--' + m for m in missing)} must be given. See strop {verb} --help.")
    if own["eval_dataset"] and "eval_strategy" not in values:
        values["eval_strategy"] = "steps" if "eval_steps" in values else "epoch"
    args = config_class.from_recipe(own["recipe"], **values) if own["recipe"] else config_class(**values)
    if own["quiet"]:
        args.quiet = args.disable_tqdm = True
    if not own["resume"] and not own["dry_run"]:
        refuse_used_folder(args)
    if own["dtype"]:
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), "dtype": own["dtype"]}
    if own["dry_run"]:
        return dry_run(method, args, own)
    trainer = make_trainer(method, args, own)
    trainer.run_directory.command = given_flags(method, own)
    return train_and_save(trainer, own)


def dry_run(method: Method, args: Any, own: dict[str, Any]) -> int:
    """Everything up to the first step, in a folder that is thrown away."""
    from strop.engine.preflight import DryRunEnds

    folder, args.report_to = args.output_dir, []
    args.rehearsal = True if args.rehearsal is None else args.rehearsal
    with tempfile.TemporaryDirectory() as scratch:
        args.output_dir = scratch
        trainer = make_trainer(method, args, own)
        trainer.preflight.only, trainer.preflight.folder = True, folder
        for report in trainer.reports.values():
            trainer.say(report.render())
        try:
            trainer.train(resume_from_checkpoint=own["resume"] if isinstance(own["resume"], str) else None)
        except DryRunEnds as end:
            trainer.say(str(end))
    return 0


def early_checks(argv: list[str]) -> None:
    """Missing files are reported before anything heavy is imported."""
    problems = []
    for word, value in itertools.pairwise(argv):
        name = word.removeprefix("--").replace("-", "_")
        named = word.startswith("--") and NAME_ALIASES.get(name, name) in ("dataset", "eval_dataset")
        if named and Path(value).suffix and not Path(value).exists():
            beside = [str(other) for other in Path(value).parent.glob(f"*{Path(value).suffix}")]
            problems.append(f"{word} {value}: there is no such file.{did_you_mean(value, beside)}")
    if problems:
        raise ConfigError.collect("Files that are named are not there:", problems)


def refuse_used_folder(args: Any) -> None:
    """A new run never goes into the folder of another one unasked."""
    folder = Path(args.output_dir)
    if not args.overwrite_output_dir and any(path.is_dir() for path in folder.glob("checkpoint-*")):
        raise ConfigError(
            f"{folder} holds another run. Choose: a new folder (--output_dir); go on with that run (--resume); or "
            "begin anew in its place, without its checkpoints (--overwrite_output_dir)."
        )


def quiet_loading() -> None:
    """No progress bars of other libraries: strop shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def model_flags(method: Method) -> tuple[Flag, ...]:
    """Further models that the trainer's constructor takes, as flags."""
    parameters = inspect.signature(method.trainer().__init__).parameters
    texts = {
        "ref_model": "Reference model, if it is not the starting model.",
        "teacher_model": "Teacher to distil from.",
        "reward_funcs": "Reward: a model id or folder, module.function, file.py:function, or a list of them.",
        "value_model": "Critic to start from, if it is not the policy.",
    }
    hint = list[str] | str
    return tuple(Flag(name, hint, help=text) for name, text in texts.items() if name in parameters)


def flag_groups(method: Method) -> dict[str, list[Flag]]:
    """All flags of a verb: the run, adapters, the method's own settings, shared ones, and those of transformers."""
    from transformers import TrainingArguments

    from strop.settings.config import TrainerConfig
    from strop.settings.schema import allowed, describe, field_hints

    config_class = method.config()
    described, hints = describe(config_class), field_hints(config_class)
    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    shared = {f.name for f in dataclasses.fields(TrainerConfig)}
    flags = [
        Flag(
            f.name,
            hints[f.name],
            None if f.default is dataclasses.MISSING else f.default,
            described[f.name][1],
            allowed(hints[f.name]),
        )
        for f in dataclasses.fields(config_class)
        if f.init and not f.name.startswith("_")
    ]
    return {
        "run": [*RUN_FLAGS, *model_flags(method)],
        "adapter": list(LORA_FLAGS),
        f"{method.verb} settings": [flag for flag in flags if flag.name not in shared],
        "settings of every method": [flag for flag in flags if flag.name in shared - theirs],
        "settings of transformers.TrainingArguments": [flag for flag in flags if flag.name in theirs],
    }


def given_flags(method: Method, own: dict[str, Any]) -> dict[str, Any]:
    """Flags of the run, its models and its adapter that are not at their default: what a config alone does not say."""
    flags = (*RUN_FLAGS, *LORA_FLAGS, *model_flags(method))
    return {
        flag.name: own[flag.name]
        for flag in flags
        if own[flag.name] != flag.default and flag.name not in ("resume", "recipe", "dry_run", "quiet")
    }


FEW = 5
"""Settings of a method that stand on its first help page: as many as one can read at once."""


def help_for(method: Method, topic: str = "") -> str:
    """The flags that people use first; all of them, those of a group, or those whose name has a word in it."""
    title = f"strop {method.verb}: {method.summary}\n\n"
    title += "Every flag may also stand in a YAML file: --config FILE; the command line wins.\n"
    title += "More: --help all, --help lora, --help WORD (flags with that word in their name)."
    groups = flag_groups(method)
    if topic == "all":
        return help_page(title, groups)
    if topic == "lora":
        return help_page(title, {"adapter": groups["adapter"]})
    every = [flag for flags in groups.values() for flag in flags]
    if topic:
        found = [flag for flag in every if topic.lstrip("-") in flag.name]
        known = [flag.name for flag in every]
        if not found:
            return f"{title}\n\nNo flag has '{topic}' in its name.{did_you_mean(topic, known)}"
        return help_page(title, {f"with '{topic}'": found})
    by_name = {flag.name: flag for flag in every}
    first = [by_name[name] for name in USED_FIRST if name in by_name]
    own = [flag for flag in groups[f"{method.verb} settings"] if flag not in first]
    return help_page(title, {"used first": first, **({f"{method.verb} settings": own} if len(own) <= FEW else {})})


def make_trainer(method: Method, args: Any, own: dict[str, Any]) -> Any:
    """The trainer, with adapter and quantisation made from flags."""
    from strop.plan.rehearsed import planned_bytes

    extra: dict[str, Any] = {flag.name: own[flag.name] for flag in model_flags(method) if own[flag.name] is not None}
    if own["lora"] or own["load_in_4bit"] or own["load_in_8bit"]:
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(
            r=own["lora_r"],
            lora_alpha=own["lora_alpha"],
            lora_dropout=own["lora_dropout"],
            target_modules=own["lora_target_modules"],
            task_type={"score": "SEQ_CLS", "step": "TOKEN_CLS"}.get(method.trainer().task, "CAUSAL_LM"),
        )
    if own["load_in_4bit"] or own["load_in_8bit"]:
        extra["quantization_config"] = quantization(own["load_in_4bit"])
    trainer = method.trainer()(
        model=own["model"],
        args=args,
        train_dataset=own["dataset"],
        eval_dataset=own["eval_dataset"],
        processing_class=own["tokenizer"],
        **extra,
    )
    trainer.preflight.planned = partial(planned_bytes, method.verb)
    return trainer


def quantization(four_bit: bool) -> Any:
    """bitsandbytes settings for QLoRA, or for 8-bit loading."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise SetupError("--load_in_4bit and --load_in_8bit need bitsandbytes. Install it: pip install 'strop[quant]'.")
    import torch
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if four_bit:
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    return BitsAndBytesConfig(load_in_8bit=True)
