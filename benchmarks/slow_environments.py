"""A run with slow environments: those of a batch side by side, as strop asks them, against one after the other.

    python -m benchmarks.slow_environments --seconds 0.2 --completions 16 --steps 3

The model is tiny, so that the time is the environments'.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from strop import GRPOConfig, GRPOTrainer
from strop.agents.environments import Environments
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

NUMBERS = itertools.count()


class OneByOne(Environments):
    """Asks the next environment when the last has answered."""

    def ask(self, work: Sequence[Any]) -> list[Any]:
        return [answer for item in work for answer in super(OneByOne, self).ask([item])]


def train(environments: type[Environments], seconds: float, completions: int, steps: int) -> float:
    """Seconds of a run of so many steps, whose environments take `seconds` to reset."""

    class Slow:
        def reset(self) -> None:
            time.sleep(seconds)

        def step(self, text: str) -> tuple[None, bool]:
            return None, True

        def get_reward(self) -> float:
            return float(next(NUMBERS))

    tokenizer = toy_tokenizer("chatml")
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=completions, num_generations=completions,
            max_completion_length=4, report_to="none", save_strategy="no", use_cpu=True,
        )  # fmt: skip
        rows = [{"prompt": [{"role": "user", "content": "go"}]}] * steps
        model = tiny_model("llama", vocab_size=len(tokenizer))
        trainer = GRPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer,
                              environment_factory=Slow)  # fmt: skip
        trainer._environments.__class__ = environments
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Print and return the seconds of both runs: side by side, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.2, help="that an environment takes to reset")
    parser.add_argument("--completions", type=int, default=16, help="in a step, each with an environment")
    parser.add_argument("--steps", type=int, default=3)
    given = vars(parser.parse_args(argv))
    train(Environments, 0.0, 2, 1)  # what only a first run pays for
    together, alone = (train(kind, **given) for kind in (Environments, OneByOne))
    print(f"side by side {together:.2f} s, one after the other {alone:.2f} s: {alone / together:.1f} times")
    return together, alone


if __name__ == "__main__":
    main()
