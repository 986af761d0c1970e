"""A text game, GuessTheNumber of `textarena`: the model guesses, the game says higher or lower.

    pip install textarena
    python -m examples.guess_number --model_name_or_path Qwen/Qwen3-0.6B --output_dir runs/guess_number

The reward is the game's own: 1 for the number, else how near the last guess was.
"""

from __future__ import annotations

import random
import threading
from typing import Any

from strop import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser

ASKED = "Guess a number. Think of the answers so far, then write one guess in square brackets, such as [5].\n\n"
_DRAWING = threading.Lock()


class GuessNumber:
    """One game; its turns are the model's guesses."""

    def __init__(self) -> None:
        import textarena

        self._game = textarena.make("GuessTheNumber-v0-raw")

    def reset(self, seed: int) -> str:
        with _DRAWING:  # the game draws from Python's one generator, and the games of a batch begin side by side
            state = random.getstate()
            self._game.reset(num_players=1, seed=seed)
            random.setstate(state)
        return self._said()

    def step(self, text: str) -> tuple[str | None, bool]:
        done, _ = self._game.step(text)
        return (None if done else self._said()), done

    def get_reward(self) -> float:
        if self._game.state.done:
            return float(self._game.state.rewards[0])
        return float(self._game._get_percentage_completion())

    def _said(self) -> str:
        """What the game has said since the last turn, without the player's own words."""
        _, messages = self._game.get_observation()
        return "\n".join(text for speaker, text, _ in messages if speaker < 0)


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Games; all completions of a row play the same one."""
    return [{"prompt": [{"role": "user", "content": ASKED}], "seed": seed + i} for i in range(count)]


def main(argv: list[str] | None = None) -> GRPOTrainer:
    parser = TrlParser((GRPOConfig, ModelConfig))
    args, model = parser.parse_args_and_config(argv)
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=make_rows(512),
        environment_factory=GuessNumber,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
