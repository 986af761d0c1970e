"""Write docs/benchmarks.md from benchmarks/results/*.json: every figure on the page is one that a run has left.

python -m benchmarks.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.trl_tests import FELT, PASSED
from benchmarks.trl_tests import RESULT as TRL_TESTS
from benchmarks.turns import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Measured side by side, in turns, each turn in a process of its own; the first step of a turn is not counted. Times
depend on the machine and its load; the ratios of one run are what counts. This page is written by
`python -m benchmarks.page` from the files in `benchmarks/results/`.

* **TRL tuned**: float32, no checkpointing, as strop runs on a CPU.
* **TRL defaults**: what its configs give, bfloat16 autocast and checkpointing.
* **strop bf16**: strop with bfloat16 autocast.
* **Useful tokens**: those of the rows; a prompt counts once for each row (for online methods once for its group).
* **Speed**: strop's useful tokens per second over the other's. **Memory**: the peak above the weights, and the
  other's over strop's, optimizer and reference included. **Of peak**: the time that a step's needed matrix products
  would take at this machine's peak (float32, measured before and after every step, in the same process), over the
  time it took. Needed are every token once, forward and backward, what it attends to, the output layer over scored
  tokens, and the reference's forward pass.
"""
SCRIPTS = """
## What is measured by which script

| script | compares |
|---|---|
| `benchmarks/offline.py` | one optimizer step of the offline methods: seconds, tokens, peak memory, loss |
| `benchmarks/hybrids.py` | makes the random hybrid models that `offline.py` is held on |
| `benchmarks/online.py` | whole steps of GRPO, RLOO, PPO, OnlineDPO, XPO, Nash-MD, GKD, sampling included |
| `benchmarks/shared.py` | a step with common beginnings of rows computed once, and without |
| `benchmarks/profile.py` | the parts of one step, by torch's profiler |
| `benchmarks/overlap.py` | GRPO with a slow judge, or a slow tool, in strict order and sampling ahead |
| `benchmarks/gpu.py` | on a card, in one call: steps of SFT, DPO and GRPO, sampling, memory ([what](gpu.md)) |
| `benchmarks/slow_environments.py` | environments that wait, one after the other and side by side |
| `benchmarks/rollout.py` | sampling alone: the native engine against `generate`, the path that TRL takes without vLLM |

Needed beside `make install`: `pip install --constraint constraints.txt trl==1.16.0`. For the
methods that TRL has given up, `trl==1.13.0` (BCO, PRM, XPO, Nash-MD) and `trl==1.12.0` (PPO). The model folder is made
by `python -m examples.smollm --fetch_only`. On a GPU: `python -m benchmarks.rollout --device cuda --dtype bfloat16`.
"""
TITLES = {
    "offline": "Offline methods",
    "offline-rest": "ORPO, CPO and reward models",
    "offline-defaults": "DPO against TRL's defaults (bfloat16 autocast, checkpointing)",
    "offline-removed": "Offline methods that TRL has given up, against the last TRL that had them",
    "hybrid-lfm2": "DPO on short convolutions and attention (LFM2, random weights)",
    "hybrid-qwen3-next": "DPO on gated delta rules and attention (Qwen3-Next, random weights)",
    "peak": "How near the processor's peak offline steps are",
    "online": "GRPO and OnlineDPO, sampling included",
    "online-rest": "RLOO and GKD, sampling included",
    "online-xpo": "XPO and Nash-MD, against the last TRL that had them",
    "online-ppo": "PPO, against the last TRL that had it",
    "rollout": "Sampling alone",
    "shared": "What rows begin with alike, computed once",
    "profile": "Where the time of a step goes",
    "gpu": "On a card",
}


def training_section(record: dict[str, Any]) -> list[str]:
    """A table of methods and libraries."""
    lines = [
        "| method | library | seconds a step | useful tokens/s | speed | peak memory | memory | of peak | mean loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, libraries in record["results"].items():
        first = next(iter(libraries))
        for library, n in libraries.items():
            speed, memory = (
                ("", "") if library == first else (f"**{n['speed_ratio']:.1f}x**", f"{n['memory_ratio']:.1f}x")
            )
            peak = f"{n['of_peak']:.0%}" if "of_peak" in n else ""
            loss = f"{n['loss']:.4f}" if "loss" in n else ""
            lines.append(
                f"| {method} | {library} | {n['seconds_per_step']:.1f} | {n['useful_tokens_per_second']:.0f} | {speed} "
                f"| {n['above_weights_gb']:.1f} GB | {memory} | {peak} | {loss} |"
            )
    return lines


def rollout_section(record: dict[str, Any]) -> list[str]:
    """Tokens per second of both engines and their ratio."""
    speeds = record["tokens_per_second"]
    return [
        f"{record['model']}, {record['dtype']}: {record['prompts']} prompts of {min(record['prompt_tokens'])} to "
        f"{max(record['prompt_tokens'])} tokens, {record['completions_per_prompt']} completions each, "
        f"mixed lengths up to {record['max_new_tokens']} tokens.",
        "",
        "| engine | useful tokens/s | ratio |",
        "|---|---|---|",
        f"| `generate` | {speeds['generate']:.0f} | |",
        f"| native | {speeds['native']:.0f} | **{record['median_ratio']:.1f}x** |",
    ]


def shared_section(record: dict[str, Any]) -> list[str]:
    """Steps with and without sharing beyond a tree, and the tokens that each computes."""
    lines = [
        "A system prompt of 600 tokens and 200 tokens of a row's own (of a pair: a question of 100, answers of 50), in "
        "one micro-batch; eight conversations of two turns whose second context is not the first one continued. "
        "*Before* shares prompts within a tree only. Tokens are those computed, over those given.",
        "",
        "| rows | seconds a step, before | now | speed | tokens, before | now | processor |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, n in record["cases"].items():
        lines.append(
            f"| {name} | {n['seconds_before']:.1f} | {n['seconds']:.1f} | **{n['times_as_fast']:.1f}x** "
            f"| {n['tokens_before']:.2f} | {n['tokens']:.2f} | {n['processor']} |"
        )
    return lines


def profile_section(record: dict[str, Any]) -> list[str]:
    """A column a method, a row a part of a step."""
    methods = record["results"]
    names = dict.fromkeys(name for parts in methods.values() for name in parts if name != "step")
    lines = [
        "The operators of one step of strop, put together by what they are for; *outside* is Python and the way to "
        "the kernels. Profiling itself costs time, most of it outside.",
        "",
        f"| part | {' | '.join(methods)} |",
        f"|---|{'---|' * len(methods)}",
    ]
    for name in names:
        cells = [f"{parts.get(name, 0.0) / parts['step']:.0%}" for parts in methods.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, f"| seconds | {' | '.join(format(parts['step'], '.1f') for parts in methods.values())} |"]


def gpu_section(record: dict[str, Any]) -> list[str]:
    """Steps on a card, then what else was measured there, then what was not and why."""
    results = record["results"]
    steps = {name: n for name, n in results.items() if "seconds_per_step" in n}
    lines = [
        "| case | seconds a step | useful tokens/s | MFU | peak memory | first step, from the start |",
        "|---|---|---|---|---|---|",
    ]
    for name, n in steps.items():
        share, memory = (f"{n['mfu']:.0%}" if "mfu" in n else "", f"{n['peak_gb']:.1f} GB" if "peak_gb" in n else "")
        lines.append(
            f"| {name} | {n['seconds_per_step']:.3f} | {n['useful_tokens_per_second']:.0f} | {share} | {memory} "
            f"| {n['first_step_from_start']:.0f} s |"
        )
    lines += ["", "| measured besides | |", "|---|---|"]
    for name, n in results.items():
        if name not in steps:
            told = n.get("failed") or ", ".join(f"{key}: {shown(value)}" for key, value in n.items())
            lines.append(f"| {name} | {told} |")
    return lines


def shown(value: Any) -> str:
    """A number with three digits; of a test that found nothing, that it passed."""
    return f"{value:.3g}" if isinstance(value, float) else str(value) or "passed"


SECTIONS = {"rollout": rollout_section, "shared": shared_section, "profile": profile_section, "gpu": gpu_section}
"""Pages of their own form; the others are tables of methods and libraries."""


def tests_section() -> str:
    """How many of TRL's own tests pass."""
    counts = json.loads(TRL_TESTS.read_text())
    passed, felt = counts[PASSED], counts[PASSED] + counts[FELT]
    others = ", ".join(f"{count} {kind}" for kind, count in counts.items() if kind not in (PASSED, FELT))
    return (
        "## TRL's own tests, with strop in its place\n\n"
        f"{passed:,} of the {felt:,} that a user could feel pass ({passed / felt:.1%}); docs/moving-from-trl.md says "
        f"why the others do not. {others}.\n\n    python -m benchmarks.trl_tests CHECKOUT --store"
    )


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, title in TITLES.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        lines = SECTIONS.get(name, training_section)(record)
        versions = record.get("versions") or {key: record[key] for key in ("torch", "transformers")}
        told = ", ".join(f"{library} {version}" for library, version in versions.items())
        command = record.get("command", f"python -m benchmarks.{name}")
        parts.append(
            "\n".join([f"## {title}", "", *lines, "", f"    {command}", "", f"{record['processor']}; {told}."])
        )
    return "\n\n".join(part.strip() for part in [*parts, tests_section(), SCRIPTS]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name} written")
