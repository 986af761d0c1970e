"""Steps of several methods as one kind of processor computes them.

`python -m tests.support.processors START FILE` writes them. Which instructions a process may use is settled before
torch is loaded, so they come from a process that is started anew. It is given the weights to start from: what torch
draws from one seed differs between processors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from strop.testing.cases import method_of
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer
from tests.support.geometry import Steps, record_run

INSTRUCTIONS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
RUNS: dict[str, dict[str, Any]] = {"sft": {}, "dpo": {"loss_type": "aot"}, "kto": {}, "reward": {}, "grpo": {}}
"""Verb -> settings."""


def models() -> dict[str, Any]:
    """The model that each run starts from, with the weights of this processor."""
    size = len(toy_tokenizer("plain"))
    return {
        verb: tiny_model("llama", dtype=torch.float64, task=method_of(verb).trainer().task, vocab_size=size)
        for verb in RUNS
    }


def steps(start: dict[str, Any]) -> dict[str, Steps]:
    """The runs from these weights, with the instructions of this process."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for verb, model in models().items():
            model.load_state_dict(start[verb])
            found[verb] = record_run(verb, Path(folder) / verb, 4, 2, model=model, **RUNS[verb])
    return found


def steps_with(instructions: str, start: dict[str, Any], folder: Path) -> dict[str, Steps]:
    """The runs in a process that may use no more than these instructions."""
    root = Path(__file__).parents[2]
    torch.save(start, folder / "start.pt")
    command = [sys.executable, "-m", "tests.support.processors", str(folder / "start.pt"), str(folder / "steps.pt")]
    env = os.environ | INSTRUCTIONS[instructions] | {"PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    subprocess.run(command, env=env, cwd=root, check=True, capture_output=True, timeout=300)
    return torch.load(folder / "steps.pt", weights_only=False)


if __name__ == "__main__":
    torch.save(steps(torch.load(sys.argv[1])), sys.argv[2])
