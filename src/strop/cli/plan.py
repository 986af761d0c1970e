"""`strop plan METHOD --model CONFIG`: will it fit? Bytes by part and card, from a config alone."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.cli.flags import Flag, all_values
from strop.errors import ConfigError, did_you_mean, folder_beside
from strop.methods.registry import BY_VERB
from strop.plain_text import first_line
from strop.terminal import in_width

if TYPE_CHECKING:
    from strop.plan.memory import Load, Plan

FLAGS = (
    Flag("model", str, help="Hub id, folder or config.json of the model; weights are not read. Required."),
    Flag("teacher_model", str, help="The same of GKD's teacher."),
    Flag("reward_model", str, help="The same of a reward model."),
    Flag("lora", bool, default=False, help="Train a LoRA adapter."),
    Flag("load_in_4bit", bool, default=False, help="Train a LoRA adapter on a 4-bit base."),
    Flag("lora_r", int, default=16, help="Rank of the adapter."),
    Flag("gpus", str, default="1x24GB", help="Number and memory of the cards: 1x24GB, 8x80GB."),
    Flag("engine", str, help="Sharing over several cards: ddp, fsdp, zero1, zero2, zero3 (default ddp)."),
    Flag("per_device_train_batch_size", int, default=8, help="Rows of a micro-batch."),
    Flag("gradient_accumulation_steps", int, default=1, help="Micro-batches of a step."),
    Flag("max_length", int, help="Tokens of a row: what its completion leaves is the prompt's."),
    Flag("max_prompt_length", int, help="Tokens of a prompt (default 512, or as max_length says)."),
    Flag("max_completion_length", int, help="Tokens of a completion (default 512, or at most half of max_length)."),
    Flag("num_generations", int, default=8, help="Completions of a prompt (GRPO, RLOO)."),
    Flag("head_memory_mb", int, help="Megabytes that logits may take (default: as a run on such a card has it)."),
    Flag("gradient_checkpointing", bool, default=False, help="Compute layers again in the backward pass."),
    Flag("activation_offloading", bool, default=False, help="Keep activations in host memory until they are needed."),
    Flag("beta", float, help="GRPO: above 0 a reference is kept."),
)
TITLE = "strop plan METHOD --model CONFIG [--gpus 1x24GB] [--lora]: will it fit?"
GB = 10**9
RESERVED = 0.06
"""Share of a card that the driver, the context and fragments of the allocator take."""


def run(argv: list[str]) -> int:
    verb = argv[0]
    if verb not in BY_VERB:
        raise ConfigError(
            f"strop plan {verb}: choose a method, one of {', '.join(BY_VERB)}.{did_you_mean(verb, BY_VERB)}"
        )
    values = all_values(argv[1:], FLAGS)
    if not values["model"]:
        raise ConfigError("--model must be given: a hub id, a folder, or a config.json.")
    print(in_width(answer(verb, values)))
    return 0


def answer(verb: str, values: dict[str, Any]) -> str:
    """The table of parts, whether it fits, and what would make it fit, for a terminal of 80 columns."""
    usable, first = usable_bytes(values["gpus"]), planned(verb, values)
    lines = [f"{verb} of {values['model']} on {values['gpus']}", ""]
    lines += [f"  {name:<18}{size / GB:8.2f} GB" for name, size in first.parts.items() if size]
    lines += [f"  {'at the peak':<18}{first.peak / GB:8.2f} GB of {usable / GB:.1f} usable", ""]
    if first.peak <= usable:
        lines += ["It fits.", f"Up to {most_rows(verb, values, usable)} rows a micro-batch would."]
    else:
        lines += ["It does not fit. Each of these on top of those before:", *remedies(verb, values, usable, first.peak)]
    return "\n".join([*lines, *sent(verb, values)])


def remedies(verb: str, values: dict[str, Any], usable: int, least: int) -> Iterator[str]:
    """A line for each change that takes less than the `least` before, until it fits."""
    for change in REMEDIES:
        if all(values[name] == value for name, value in change.items()):
            continue
        values = values | change
        peak = planned(verb, values).peak
        if peak < least:
            least = peak
            flag = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in change.items())
            yield f"  {flag:<46}{peak / GB:8.2f} GB {'fits' if peak <= usable else ''}".rstrip()
        if least <= usable:
            return


def sent(verb: str, values: dict[str, Any]) -> list[str]:
    """What a step sends over the network, where it sends anything."""
    from strop.plan.traffic import traffic

    amounts = traffic(verb, policy(values), load_of(values))
    lines = [f"  {name:<26}{amount / GB:11.5f} GB" for name, amount in amounts.items()]
    return ["", "A step sends:", *lines] if lines else []


REMEDIES: tuple[dict[str, Any], ...] = (
    {"per_device_train_batch_size": 1},
    {"gradient_checkpointing": True},
    {"activation_offloading": True},
    {"lora": True},
    {"load_in_4bit": True},
)
"""Changes in the order of what they cost: nothing, time, a little quality; each on top of those before."""


def planned(verb: str, values: dict[str, Any]) -> Plan:
    """The plan of the settings as they were given."""
    from strop.plan.memory import plan

    return plan(verb, policy(values), load_of(values))


def policy(values: dict[str, Any]) -> Any:
    """The model's shape, with an adapter's rank where one is trained."""
    return shape(values["model"], values["lora_r"] if values["lora"] or values["load_in_4bit"] else None)


def load_of(values: dict[str, Any]) -> Load:
    """What is trained, how it is shared out over the devices, and on which rows."""
    from strop.plan.memory import Load

    sizes = ("max_length", "max_prompt_length", "max_completion_length")
    longest, prompt, completion = (values[name] for name in sizes)
    if completion is None:
        completion = 512 if longest is None else min(512, longest // 2)
    if prompt is None:
        prompt = 512 if longest is None else longest - completion
    if min(prompt, completion) < 1 or (longest is not None and prompt + completion > longest):
        raise ConfigError(
            f"A prompt of {prompt} tokens and a completion of {completion} are no row"
            f"{'' if longest is None else f' of max_length={longest}'}: both have one token at least, and go into "
            "max_length together. Raise max_length, or leave one of the three away."
        )
    devices, _ = cards(values["gpus"])
    return Load(
        training="4bit" if values["load_in_4bit"] else "lora" if values["lora"] else "full",
        lora_rank=values["lora_r"],
        engine=values["engine"] or ("ddp" if devices > 1 else "single"),
        devices=devices,
        rows=values["per_device_train_batch_size"],
        prompt=prompt,
        completion=completion,
        micro_batches=values["gradient_accumulation_steps"],
        generations=values["num_generations"],
        head_bytes=None if values["head_memory_mb"] is None else values["head_memory_mb"] << 20,
        card=usable_bytes(values["gpus"]),
        checkpointing=values["gradient_checkpointing"],
        offloading=values["activation_offloading"],
        reference=None if values["beta"] is None else values["beta"] > 0,
        teacher=shape(values["teacher_model"], None) if values["teacher_model"] else None,
        reward=shape(values["reward_model"], None) if values["reward_model"] else None,
    )


def most_rows(verb: str, values: dict[str, Any], usable: int) -> int:
    """The largest micro-batch that fits, by bisection; at most 4096 rows."""
    sizes = range(values["per_device_train_batch_size"], 4096)
    too_much = lambda rows: planned(verb, values | {"per_device_train_batch_size": rows + 1}).peak > usable  # noqa: E731
    return sizes.start + bisect.bisect_left(sizes, True, key=too_much)


@functools.cache
def shape(source: str, rank: int | None) -> Any:
    """A model's shape from its config, counted once."""
    import torch
    from transformers import AutoConfig

    from strop.plan.activations import shape_of

    path = Path(source)
    place = path.parent if path.is_file() else path
    if not place.exists() and (source.endswith(".json") or source.startswith((".", "/"))):
        raise ConfigError(f"--model {source}: there is no such file or folder.{folder_beside(source)}")
    try:
        config = AutoConfig.from_pretrained(str(place) if place.exists() else source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--model {source}: no config can be read there ({first_line(error)}).{folder_beside(source)}"
        ) from None
    return shape_of(config, torch.bfloat16, lora_rank=rank)


def usable_bytes(gpus: str) -> int:
    """Bytes of one of these cards that a run can have."""
    return int(cards(gpus)[1] * (1 - RESERVED))


def cards(text: str) -> tuple[int, int]:
    """`8x80GB` as (8, bytes of one card)."""
    match = re.fullmatch(r"(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?", str(text).strip().lower())
    if match is None or not float(match[2]) or match[1] == "0":
        raise ConfigError(f"--gpus {text}: write number and memory of the cards, for example 1x24GB or 8x80GB.")
    return int(match[1] or 1), int(float(match[2]) * GB)
