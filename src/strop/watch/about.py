"""What trains what on which rows: the head of a run's page, and of its model card."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from strop.data import DataReport
from strop.model import base_model
from strop.plain_text import masked


def about(policy: Any, reports: Mapping[str, DataReport]) -> dict[str, str]:
    """Model, data, adapter and command of a run, each as a reader names it; what there is none of is left out."""
    model = base_model(policy)
    name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
    facts = {"model": str(name), "data": "; ".join(map(rows_of, reports.values())), "adapter": adapter_of(policy)}
    return {key: value for key, value in {**facts, "command": command_of(sys.argv)}.items() if value}


def rows_of(report: DataReport) -> str:
    """`gsm8k.jsonl (prompt_only, 7,473 rows)`."""
    role = "" if report.name == "train" else f"{report.name}: "
    return f"{role}{report.source} ({report.kind}, {report.rows_read:,} rows)"


def adapter_of(policy: Any) -> str:
    """`LORA, rank 16, on q_proj, v_proj`; empty where all weights are trained."""
    configs = getattr(policy, "peft_config", None)
    if not configs:
        return ""
    config = next(iter(configs.values()))
    kind = getattr(config.peft_type, "value", config.peft_type)
    rank, modules = getattr(config, "r", None), getattr(config, "target_modules", None)
    named = modules if isinstance(modules, str) else ", ".join(sorted(modules or ()))
    return f"{kind}" + (f", rank {rank}" if rank else "") + (f", on {named}" if named else "")


def command_of(argv: Sequence[str]) -> str:
    """The command line that started this process, with secrets as `***`."""
    words = [_program(Path(argv[0]))] if argv else []
    for before, word in pairwise(argv):
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals:
            words.append(f"{name}={masked(value, name[2:])}")
        else:
            words.append(str(masked(word, before.removeprefix("--") if before.startswith("--") else "")))
    return shlex.join(words)


def _program(path: Path) -> str:
    """The name of a script; of a package that was started by `python -m`, the package's."""
    return path.parent.name if path.name == "__main__.py" else path.name
