"""What a short run is seen to do: everything that a setting could change, apart from the record of the settings.

`observe("dpo", folder, beta=0.2)` constructs a trainer on a tiny model, trains it, and returns its aspects by name; two
runs are compared aspect by aspect. A designed error is an aspect too; any other exception passes through.

    weights   all weights at the end, but for rounding  rows     ids and masks of every optimizer step
    log       lines of metrics.jsonl, times left out  rates    learning rate of every optimizer step
    files     names, and contents where a reader's    printed  lines in the terminal
    passes    shapes that went through each layer     engine   rollout engine and its settings
    model     dropout, checkpointing, dtypes, flags   loader   how rows are fetched
    process   state of the process as a whole         error    the message of a StropError
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from strop.errors import StropError
from strop.testing.cases import make_trainer, rows_for
from strop.testing.run_checks import UNTIMED

STEPS = 2
RECORDS = ("config.yaml", "run.json", "training_args.bin", "manifest.json", "trainer_state.json", "strop_state.pt")
"""Files that hold the settings or the clock: a setting that changes only these changes nothing."""
READ = ("samples.jsonl", "alarms.jsonl", "data.json", "chat_template.jinja", "tokenizer_config.json")
"""Files whose contents count; of the others the names do."""


class Watch(TrainerCallback):
    """Learning rate and rows of every optimizer step."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.rates: list[float] = []
        self.rows: list[Any] = []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))
        work = self.trainer.step_work
        self.rows.append([(e.prompt_ids, e.completions, e.loss_mask, e.score_prompt) for e in work.examples])


def observe(
    verb: str,
    folder: Path,
    *,
    make: Mapping[str, Any] | None = None,
    before: Callable[[Any], None] | None = None,
    within: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    **settings: Any,
) -> dict[str, Any]:
    """The aspects of a run.

    Args:
        verb: one of `strop.testing.cases.CASES`.
        folder: the run is in `folder/run` unless `output_dir` says otherwise.
        make: further arguments of `make_trainer`: rows, model, trainer, ...
        before: called with the trainer before it trains.
        within: makes a context around the run; what it yields is the aspect `extra`.
        settings: of the method's config.
    """
    arguments = {"rows": rows_for(verb, 8), "eval_rows": rows_for(verb, 3, seed=1), **(make or {})}
    values = {"output_dir": str(folder / "run"), "max_steps": STEPS, **settings}
    seen: dict[str, Any] = {}
    printed, watch = io.StringIO(), Watch()
    with process_as_it_was(), contextlib.chdir(folder), within() as extra, contextlib.redirect_stdout(printed):
        try:
            trainer = make_trainer(verb, **{"folder": folder, **arguments, **values})
            watch.trainer = trainer
            trainer.add_callback(watch)
            if before is not None:
                before(trainer)
            with layer_passes(trainer) as passes:
                trainer.train()
            seen |= aspects(trainer)
            seen |= {"rates": watch.rates, "rows": watch.rows, "passes": passes}
        except StropError as error:
            seen["error"] = f"{type(error).__name__}: {error}".replace(str(folder), "")
        seen["process"] = process_state()
    seen |= {"printed": printed.getvalue().replace(str(folder), ""), "extra": extra}
    return seen | {"files": files(folder), "log": log(folder)}


def aspects(trainer: Any) -> dict[str, Any]:
    """What can be read off a trainer that has trained."""
    modules = list(trainer.model.modules())
    base = trainer.policy
    checkpointing = [getattr(m, "_gradient_checkpointing_func", None) for m in modules]
    generator = getattr(trainer, "_generator", None)
    tokenizer = trainer.processing_class
    loader = trainer.get_train_dataloader()
    return {
        "weights": Weights(trainer.model),
        "model": {
            "dropout": sorted({m.p for m in modules if isinstance(m, torch.nn.Dropout)}),
            "checkpointing": sorted({str(sorted(f.keywords.items())) for f in checkpointing if f is not None}),
            "dtypes": sorted({str(p.dtype) for p in trainer.model.parameters()}),
            "use_cache": getattr(base.config, "use_cache", None),
            "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
            "tokenizer": (tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template),
            "compiled": any("_orig_mod" in name for name, _ in trainer.model_wrapped.named_modules()),
        },
        "engine": generator and (type(generator).__name__, getattr(generator, "max_slots", None)),
        "loader": {
            name: getattr(loader, name)
            for name in ("num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "in_order")
        }
        | {"start": str(loader.multiprocessing_context)},
    }


class Weights:
    """All weights of a model; equal to others that differ by rounding alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.values = {name: tensor.detach().double().clone() for name, tensor in model.state_dict().items()}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Weights)
            and self.values.keys() == other.values.keys()
            and all(
                mine.shape == other.values[name].shape and torch.allclose(mine, other.values[name], 1e-9, 1e-11)
                for name, mine in self.values.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]


@contextlib.contextmanager
def layer_passes(trainer: Any) -> Iterator[list[tuple[int, ...]]]:
    """Shape of the states that enter the first attention, for every forward pass of policy, reference and teacher,
    those that checkpointing repeats included."""
    shapes: list[tuple[int, ...]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        shapes.append(tuple(states.shape))

    roots = [trainer.model, getattr(trainer.reference, "model", None), getattr(trainer, "teacher", None)]
    layers = [
        next((m for m in root.modules() if type(m).__name__.endswith("Attention")), None)
        for root in roots
        if root is not None
    ]
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers if layer is not None]
    yield shapes
    for hook in hooks:
        hook.remove()


def files(folder: Path) -> dict[str, str]:
    """Names of all files of a run, with the hash of those that people read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = path.read_bytes() if path.name in READ else b""
            found[str(path.relative_to(folder))] = hashlib.blake2b(text, digest_size=8).hexdigest() if text else ""
    return found


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of every metrics.jsonl of a run, without what measures time and memory of the machine."""
    lines = []
    for path in sorted(folder.rglob("metrics.jsonl")):
        for line in path.read_text().splitlines():
            lines.append({key: value for key, value in json.loads(line).items() if not key.endswith(UNTIMED)})
    return lines


def process_state() -> dict[str, Any]:
    """What a run may change beyond its trainer."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "verbosity": logging.get_verbosity(),
        "tokenizer_threads": os.environ.get("RAYON_NUM_THREADS"),
    }


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Puts environment, verbosity, determinism and random state back."""
    environment, verbosity = dict(os.environ), logging.get_verbosity()
    random_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.set_verbosity(verbosity)
        torch.use_deterministic_algorithms(False)
        random.setstate(random_state)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    """Names of the aspects in which two runs differ."""
    return {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
