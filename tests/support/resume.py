"""Runs that go on from a checkpoint of another one, and everything that must then be as if nobody had stopped.

`record` trains and notes what a run is: weights, optimizer, schedule, random states, what the method keeps, the rows
of every step, every logged line. `go_on` does the same from a checkpoint; both return plain values, for processes of
their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback

from strop.engine.checkpoint import checkpoints
from strop.engine.reference_scores import PARTS
from strop.engine.reference_upkeep import moving_weights
from strop.engine.sharding import whole
from strop.testing.cases import make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts
from strop.testing.run_checks import logged

Record = dict[str, Any]
"""Name -> hash or plain value."""


class NoisyReward:
    """A reward that draws on the global random states, and has to live in the training process for it."""

    __name__ = "noisy"

    def __reduce__(self) -> Any:
        raise TypeError("this reward cannot be moved")

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [random.random() + float(numpy.random.random()) + float(torch.rand(())) for _ in completions]


class SaveAt(TrainerCallback):
    """Asks for a checkpoint after these steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step in self.steps


def run_of(verb: str, folder: Path | str, options: Mapping[str, Any]) -> Any:
    """A trainer for a run of about six steps, three to an epoch: two micro-batches of two, the last step is short.

    Beside settings, `options` may hold `lora` (True, or its dropout), `stream`, `eval`, `noisy` (all True), `fixed`
    (rollouts that depend on the prompt alone), `rows` (how many) and arguments of `make_trainer`.
    """
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "lr_scheduler_type": "linear",
        **({"num_generations": 2} if verb in ("grpo", "rloo") else {"num_iterations": 2} if verb == "ppo" else {}),
        **({"ddp_backend": "gloo"} if "WORLD_SIZE" in os.environ else {}),
        **options,
    }
    groups = verb in ("grpo", "rloo")  # two completions of a prompt make the rows of a micro-batch
    rows: Any = rows_for(verb, settings.pop("rows", 5 if groups else 10))
    extra: dict[str, Any] = {"reward_funcs": NoisyReward()} if settings.pop("noisy", False) else {}
    if (dropout := settings.pop("lora", False)) is not False:
        from peft import LoraConfig

        dropout = 0.1 if dropout is True else dropout
        extra["peft_config"] = LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
    if settings.pop("eval", False):
        settings["eval_rows"] = rows_for(verb, 3, seed=1)
    if settings.pop("stream", False):
        from datasets import IterableDataset

        rows = IterableDataset.from_generator(_rows_again, gen_kwargs={"verb": verb, "count": len(rows)})
    fixed = settings.pop("fixed", False)
    trainer = make_trainer(verb, folder, rows=rows, trainer=extra, **settings)
    return fix_rollouts(trainer) if fixed else trainer


def _rows_again(verb: str, count: int) -> Iterator[dict[str, Any]]:
    yield from rows_for(verb, count)


def record(
    verb: str,
    folder: Path | str,
    options: Mapping[str, Any],
    *,
    save_at: Sequence[int] = (),
    resume: Any = None,
    signalled: int | None = None,
) -> Record:
    """Train a run and note what it was; `signalled` is sent to this process between micro-batches of the second
    step."""
    trainer = run_of(verb, folder, options)
    trainer.add_callback(SaveAt(save_at))
    backward = trainer.backward

    def backward_or_signal(loss: Any) -> None:
        if signalled is not None and len(trainer.step_work.losses) == 1 and trainer.state.global_step == 1:
            os.kill(os.getpid(), signalled)
        backward(loss)

    trainer.backward = backward_or_signal
    rows: dict[int, str] = {}
    make_work = trainer.make_work

    def noted(examples: list[Any]) -> Any:
        rows[trainer.state.global_step + 1] = " ".join(f"{e.row}:{digest(e.to_plain())[:6]}" for e in examples)
        return make_work(examples)

    trainer.make_work = noted
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: whole(tensor) for name, tensor in trainer.model.state_dict().items()}
    facts = {f"weight {name}": tensor for name, tensor in weights.items()}
    facts |= {f"reference {name}": tensor for name, tensor in moving_reference(trainer).items()}
    facts |= dict(leaves(trainer.optimizer.state_dict(), "optimizer"))
    facts |= dict(leaves(trainer.lr_scheduler.state_dict(), "schedule"))
    facts |= dict(leaves(trainer.extra_state(), "kept"))
    facts |= {"random python": random.getstate(), "random torch": torch.random.get_rng_state()}
    facts["random numpy"] = repr(numpy.random.get_state())
    state = {"step": trainer.state.global_step, "epoch": trainer.state.epoch}
    return {
        "facts": {name: digest(value) for name, value in facts.items()} | state,
        "rows": rows,
        "log": logged(Path(folder)) if trainer.is_world_process_zero() else [],
        "weights": {name: tensor.detach().double().clone() for name, tensor in weights.items()},
    }


def moving_reference(trainer: Any) -> dict[str, torch.nn.Parameter]:
    with moving_weights(trainer.args, trainer.reference, trainer.policy) as weights:
        return weights


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value within nested containers, under the path that leads there."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{name} {key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from leaves(part, f"{name} {index}")
    else:
        yield name, value


def digest(value: Any) -> str:
    """Hash of a tensor's bytes, or of a plain value."""
    if isinstance(value, torch.Tensor):
        value = whole(value)
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        data += f"{value.dtype} {tuple(value.shape)}".encode()
    else:
        data = repr(value).encode()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def cut_off(run: Path, at: int, into: Path) -> Path:
    """What was in a run's folder, besides later checkpoints, when its checkpoint of a step had been written."""
    into.mkdir(parents=True)
    for path in run.glob("*.jsonl"):
        shutil.copy(path, into)
    for folder in (*(c for c in checkpoints(run) if int(c.name.split("-")[1]) <= at), run / PARTS):
        if folder.is_dir():
            shutil.copytree(folder, into / folder.name)
    return into


def cut_short(jobs: Sequence[tuple[str, str, dict[str, Any], int]]) -> None:
    """Runs of (verb, folder, options, signal), each with a checkpoint after its first step."""
    for verb, folder, options, number in jobs:
        with contextlib.suppress(SystemExit):
            record(verb, folder, options, save_at=[1], signalled=number)


def go_on(jobs: Sequence[tuple[str, str, dict[str, Any], Any]]) -> list[Record]:
    """`record` for several (verb, folder, options, resume) in one process."""
    return [record(verb, folder, options, resume=resume) for verb, folder, options, resume in jobs]


def go_on_into(jobs: Sequence[tuple[str, str, dict[str, Any], Any]], result: str) -> None:
    """`go_on`, with the records left in a file: for a process of its own."""
    torch.save(go_on(jobs), result)


def unlike(whole: Record, resumed: Record, cut: int) -> list[str]:
    """What of a resumed run differs from the run that was never stopped."""
    found = [
        name
        for name in sorted(whole["facts"].keys() | resumed["facts"].keys())
        if whole["facts"].get(name) != resumed["facts"].get(name)
    ]
    expected = {step: rows for step, rows in whole["rows"].items() if step > cut}
    found += [f"rows of step {step}" for step in expected if resumed["rows"].get(step) != expected[step]]
    found += [f"rows of step {step} again" for step in resumed["rows"].keys() - expected.keys()]
    if len(whole["log"]) != len(resumed["log"]):
        found.append(f"{len(whole['log'])} logged lines, {len(resumed['log'])} after the resume")
    for one, other in zip(whole["log"], resumed["log"], strict=False):
        names = (name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        found += [f"{name} of step {one['step']}: {one.get(name)}, {other.get(name)}" for name in names]
    return found


def on_two_ranks(runs: Sequence[tuple[str, dict[str, Any], int]], folder: str) -> list[dict[str, Record]]:
    """One of two ranks: every run gone on with from what one process left, begun anew, and gone on with by two.

    `runs` are (verb, options, cut); `<folder>/<index>-one` holds what one process left at the cut.
    """
    records = []
    for index, (verb, options, cut) in enumerate(runs):
        place, own = Path(folder), {**options, "gradient_accumulation_steps": 1}
        from_one = record(verb, place / f"{index}-one", own, resume=True)
        two = record(verb, place / f"{index}-two", own, save_at=[cut])
        if os.environ["RANK"] == "0":
            for name in ("again", "down"):
                cut_off(place / f"{index}-two", cut, place / f"{index}-{name}")
        torch.distributed.barrier()
        again = record(verb, place / f"{index}-again", own, resume=True)
        records.append({"from one": from_one, "two": two, "again": again})
    return records


def row_numbers(*ranks: Record) -> dict[int, list[int]]:
    """The rows of every step, over all ranks."""
    found: dict[int, list[int]] = {}
    for rank in ranks:
        for step, rows in rank["rows"].items():
            found.setdefault(step, []).extend(int(row.split(":")[0]) for row in rows.split())
    return {step: sorted(rows) for step, rows in sorted(found.items())}


def largest_gap(first: Record, second: Record) -> float:
    """Greatest difference of the weights of two runs."""
    one, other = first["weights"], second["weights"]
    return max(float((one[name] - other[name]).abs().max()) for name in one)
