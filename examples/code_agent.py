"""A code agent: the model writes a program, runs it in the sandbox, reads the error, and mends it.

    python -m examples.code_agent --model_name_or_path Qwen/Qwen3-0.6B --output_dir runs/code_agent

The reward is the share of hidden tests that the last program passes. Programs and tests run behind the wall of
`strop.rewards.run_code` (bubblewrap).
"""

from __future__ import annotations

from typing import Any

from strop import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser
from strop.rewards import run_code

TASKS: dict[str, list[str]] = {
    "count_vowels(text) returns how many of a, e, i, o, u the text has": [
        "assert count_vowels('strop') == 1", "assert count_vowels('') == 0", "assert count_vowels('aeiou') == 5",
    ],
    "digits(number) returns the sum of the digits of a whole number, which may be negative": [
        "assert digits(123) == 6", "assert digits(-45) == 9", "assert digits(0) == 0",
    ],
    "longest(words) returns the first of the longest words of a list, and None of an empty one": [
        "assert longest(['a', 'bcd', 'efg']) == 'bcd'", "assert longest([]) is None",
    ],
}  # fmt: skip
"""What to write, and the tests, which the model does not see."""


class Workbench:
    """Runs programs of the model, and keeps the last one."""

    def reset(self, tests: list[str]) -> None:
        self._tests, self._program = tests, ""

    def run(self, program: str) -> str:
        """Run a Python program, and keep it as the answer.

        Args:
            program: The whole program; what it prints is shown.
        """
        self._program = program
        done = run_code(program)
        problem = (done.stderr.strip() or done.error) if done.status != "ok" else ""
        return "\n".join(part for part in (done.stdout.strip(), problem) if part) or "(it ran and printed nothing)"

    def get_reward(self) -> float:
        if not self._program:
            return 0.0
        passed = run_code(self._program, tests=self._tests).passed
        return sum(passed) / len(passed)


def make_rows(count: int) -> list[dict[str, Any]]:
    """The tasks over and over."""
    asked = (
        "Write a Python program in which {}. Run it with the tool, try it on examples, and mend it until it is right."
    )
    rows = [
        {"prompt": [{"role": "user", "content": asked.format(task)}], "tests": tests} for task, tests in TASKS.items()
    ]
    return [rows[i % len(rows)] for i in range(count)]


def main(argv: list[str] | None = None) -> GRPOTrainer:
    parser = TrlParser((GRPOConfig, ModelConfig))
    args, model = parser.parse_args_and_config(argv)
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=make_rows(512),
        environment_factory=Workbench,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
