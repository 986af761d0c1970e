"""A run with slow environments, and one with slow tools: those of a batch side by side against one after the other.

    python -m benchmarks.slow_environments --seconds 0.2 --completions 16 --steps 3

The model is tiny, and where there are tools its calls are written for it, so that the time is the waiting's.
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
from strop.records import Rollout
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

NUMBERS = itertools.count()
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"word": "strop"}}\n</tool_call>'
TOKENS = 120


class OneByOne(Environments):
    """Asks the next environment when the last has answered."""

    def ask(self, work: Sequence[Any]) -> list[Any]:
        return [answer for item in work for answer in super(OneByOne, self).ask([item])]


class Calls:
    """Stands for a model that calls the tool once, and then has no more to say."""

    name, reason = "calls", ""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, *, mixture: Any = None) -> Rollout:
        said = [self._turn(self.tokenizer.decode(prompt)) for prompt in prompts]
        return Rollout(
            prompts, [[ids] for ids in said], [[[-1.0] * len(ids)] for ids in said], [["stop"] for _ in said]
        )

    def _turn(self, context: str) -> list[int]:
        text = "so" if "look_up says" in context else CALL
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def sync(self, model: Any = None) -> None: ...

    def close(self) -> None: ...


def number(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs, so that there is something to learn."""
    return [float(next(NUMBERS)) for _ in completions]


def run(folder: str, completions: int, steps: int, given: dict[str, Any], **settings: Any) -> GRPOTrainer:
    tokenizer = toy_tokenizer("chatml")
    args = GRPOConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=completions, num_generations=completions,
        report_to="none", save_strategy="no", use_cpu=True, **settings,
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": "go"}]}] * steps
    model = tiny_model("llama", vocab_size=len(tokenizer))
    return GRPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, **given)


def timed(trainer: GRPOTrainer) -> float:
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def with_environments(kind: type[Environments], seconds: float, completions: int, steps: int) -> float:
    """Seconds of a run of so many steps, whose environments take `seconds` to reset."""

    class Slow:
        def reset(self) -> None:
            time.sleep(seconds)

        def step(self, text: str) -> tuple[None, bool]:
            return None, True

        def get_reward(self) -> float:
            return float(next(NUMBERS))

    with tempfile.TemporaryDirectory() as folder:
        trainer = run(folder, completions, steps, {"environment_factory": Slow}, max_completion_length=4)
        trainer._environments.__class__ = kind
        return timed(trainer)


def with_tools(at_once: int, seconds: float, completions: int, steps: int) -> float:
    """Seconds of a run of so many steps, in which each completion calls a tool that takes `seconds`."""

    def look_up(word: str) -> str:
        """Look up a word.

        Args:
            word: To be looked up.
        """
        time.sleep(seconds)
        return f"look_up says: {word}"

    with tempfile.TemporaryDirectory() as folder:
        given = {"reward_funcs": number, "tools": [look_up]}
        trainer = run(folder, completions, steps, given, max_completion_length=TOKENS, tools_at_once=at_once)
        trainer._generator = Calls(trainer.processing_class)
        taken = timed(trainer)
        calls = trainer.state.log_history[0].get("tools/call_frequency", 1.0)
        assert calls == 1.0, f"{calls} calls in a completion"
        return taken


def main(argv: list[str] | None = None) -> list[tuple[float, float]]:
    """Print and return the seconds of both runs, of environments and of tools: side by side, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.2, help="that an environment takes to reset, or a tool")
    parser.add_argument("--completions", type=int, default=16, help="in a step, each with an environment or a call")
    parser.add_argument("--steps", type=int, default=3)
    given = vars(parser.parse_args(argv))
    with_environments(Environments, 0.0, 2, 1)  # what only a first run pays for
    with_tools(1, 0.0, 2, 1)
    found = []
    for what, work, ways in (
        ("environments", with_environments, (Environments, OneByOne)),
        ("tools", with_tools, (given["completions"], 1)),
    ):
        together, alone = (work(way, **given) for way in ways)
        print(f"{what}: side by side {together:.2f} s, one after the other {alone:.2f} s: {alone / together:.1f} times")
        found.append((together, alone))
    return found


if __name__ == "__main__":
    main()
