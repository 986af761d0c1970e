"""One step of every method, its model saved and loaded again: `python -m benchmarks.support.smoke`, JSON on stdout.

Run in an environment of other versions by `benchmarks.support.versions`; it therefore imports nothing but strop.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")


def main() -> None:
    out = os.dup(1)  # trainers print to stdout
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    from strop.methods.registry import METHODS

    found = {name: one_step(method.verb, lora) for method in METHODS for name, lora in _runs(method.verb)}
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"versions": {name: version(name) for name in PACKAGES}, "found": found}, file)


def _runs(verb: str) -> list[tuple[str, bool]]:
    return [(verb, False)] + [(f"{verb}, LoRA", True)] * (verb in ("sft", "reward", "dpo", "grpo"))


def one_step(verb: str, lora: bool) -> str:
    """ "ok", or what went wrong."""
    import peft
    import torch

    from strop.model import load_model
    from strop.testing.cases import make_trainer, rows_for, samples

    try:
        with tempfile.TemporaryDirectory(prefix="strop-smoke-") as folder:
            given = {"peft_config": peft.LoraConfig(r=2, target_modules="all-linear")} if lora else {}
            options = {"max_completion_length": 4} if samples(verb) else {}
            trainer = make_trainer(
                verb, folder, rows=rows_for(verb, 4), trainer=given, dtype=torch.float32, max_steps=1,
                save_strategy="steps", save_steps=1, **options,
            )  # fmt: skip
            trainer.train()
            saved = Path(folder) / "saved"
            trainer.save_model(str(saved))
            if lora:
                assert (saved / "adapter_model.safetensors").is_file()
                return "ok"
            again = load_model(saved, task=trainer.task, fresh_head=False)
            weights = again.state_dict()
            wrong = [name for name, weight in trainer.policy.state_dict().items() if not weights[name].equal(weight)]
            return f"loaded with other {wrong[0]}" if wrong else "ok"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    sys.exit(main())
