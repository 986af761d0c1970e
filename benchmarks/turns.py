"""Two libraries in turns: A B A B, each turn in a process of its own, so that peak memory can be read.

A benchmark module says how rows and trainers are made; this one runs them, counts, and writes what it found. The first
step of a turn is never counted (it is reported as `first_step`): it pays for memory that later steps use again.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Clock:
    """Seconds of every optimizer step of a run, and what it logged last.

    Args:
        now: the clock.
        rate: gives the operations a second that the machine can do; asked between steps, outside their time. `possible`
            is then, of each step, how many could have been done in its seconds, by the better of the rates around it.
    """

    def __init__(self, rate: Callable[[], float] | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self.rate, self.now = rate, now
        self.seconds: list[float] = []
        self.possible: list[float] = []
        self.logs: dict[str, float] = {}

    def time(self, trainer: Any) -> None:
        """Train, and fill in the seconds and the logs."""
        from transformers import TrainerCallback

        clock = self
        rate = self.rate or (lambda: 0.0)

        class Times(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                self.rate = rate()
                self.start = clock.now()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # TRL's PPO never says that a step begins
                now = clock.now()
                before, self.rate = self.rate, rate()
                clock.seconds.append(now - self.start)
                clock.possible.append((now - self.start) * max(before, self.rate))
                self.start = clock.now()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                clock.logs |= {name: value for name, value in (logs or {}).items() if isinstance(value, float | int)}

        trainer.add_callback(Times())
        trainer.train()


def peak_rate() -> float:
    """Floating-point operations a second in a large float32 matrix product, here and now."""
    import torch

    side = 2048
    matrix = torch.randn(side, side)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def touch(*models: Any) -> None:
    """Read every weight once: weights mapped from a file take memory only from then on."""
    for model in models:
        for parameter in model.parameters():
            parameter.detach().sum()


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Of the libraries that are compared and of what they stand on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("strop", "trl", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def in_child(module: str, library: str, method: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One turn in a process of its own: the module prints its result as the last line."""
    command = [sys.executable, "-m", module, *arguments, "--child", library, "--methods", method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{library}, {method}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary_of(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Medians of the counted steps of all turns of a library; memory is the greatest of the turns."""
    counted = [seconds for turn in turns for seconds in turn["seconds"][1:]]
    numbers = {
        "seconds_per_step": statistics.median(counted),
        "first_step": statistics.median(turn["seconds"][0] for turn in turns),
        "useful_tokens_per_second": statistics.median(
            turn["useful_tokens_per_step"] * len(turn["seconds"][1:]) / sum(turn["seconds"][1:]) for turn in turns
        ),
        "peak_gb": max(turn["peak_bytes"] for turn in turns) / 1e9,
        "above_weights_gb": max(turn["above_weights_bytes"] for turn in turns) / 1e9,
    }
    if all("loss" in turn for turn in turns):
        numbers["loss"] = turns[0]["loss"]
        numbers["of_peak"] = statistics.median(turn["of_peak"] for turn in turns)
    return numbers


def compare(
    module: str, method: str, libraries: Sequence[str], turns: int, arguments: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Alternate the libraries; each line of the result also says how many times strop's speed that is."""
    results: dict[str, list[dict[str, Any]]] = {library: [] for library in libraries}
    for _ in range(turns):
        for library in libraries:
            results[library].append(in_child(module, library, method, arguments))
    summary = {library: summary_of(found) for library, found in results.items()}
    ours = summary[libraries[0]]
    for numbers in summary.values():
        numbers["speed_ratio"] = ours["useful_tokens_per_second"] / numbers["useful_tokens_per_second"]
        numbers["memory_ratio"] = numbers["above_weights_gb"] / ours["above_weights_gb"]
    return summary


def run(
    module: str,
    parser: argparse.ArgumentParser,
    one_turn: Callable[[str, str, argparse.Namespace], dict[str, Any]],
    libraries: Sequence[str],
    arguments: Sequence[str] | None = None,
) -> None:
    """The command line that all training benchmarks share: a turn in a child, or all turns and their summary."""
    parser.add_argument("--libraries", nargs="+", default=list(libraries), choices=libraries)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--name", help="also write the result to benchmarks/results/NAME.json")
    parser.add_argument("--child", choices=libraries)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.child:
        print(json.dumps(one_turn(options.child, options.methods[0], options)))
        return
    found: dict[str, Any] = {}
    for method in options.methods:
        found[method] = compare(module, method, options.libraries, options.turns, given)
        print(method)
        for library, numbers in found[method].items():
            print(f"  {library:<13} " + "  ".join(f"{key} {value:.4g}" for key, value in numbers.items()), flush=True)
        if options.name:
            RESULTS.mkdir(exist_ok=True)
            write(RESULTS / f"{options.name}.json", module, options, found)


def write(path: Path, module: str, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """The result with the command that gives it, the machine and the versions."""
    words = []
    for key, value in vars(options).items():
        if value is not None and key != "child":
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{key}", *(shlex.quote(str(v)) for v in values)]
    store(path, f"python -m {module} {' '.join(words)}", results=found)


def store(path: Path, command: str, **found: Any) -> None:
    """What was found, under its names, with the command that gives it, the machine and the versions."""
    record = {"command": command, "processor": processor(), "versions": versions(), **found}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
