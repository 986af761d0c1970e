"""The text game is played: the number is the row's, the answers are the game's, the reward tells how near it came."""

from __future__ import annotations

import random
import re

import pytest
from tests.support.conversations import Script, asked
from tests.support.templates import KINDS, tokenizer_with

from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.rollout import SamplingParams

pytest.importorskip("textarena")
from examples.guess_number import GuessNumber, make_rows


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with(KINDS["gathered"])[0]


def halve(context, place):
    """A player that halves what is left; the second completion of a row says no number."""
    if place % 2:
        return "I do not know"
    low, high = 1, 20
    for guess, hint in re.findall(
        r"\[(\d+)\].*?is (higher|lower)", context.partition("Enter your guess")[2], re.DOTALL
    ):
        low, high = (int(guess) + 1, high) if hint == "higher" else (low, int(guess) - 1)
    return f"[{(low + high) // 2}]"


def test_a_player_that_halves_wins_and_one_that_rambles_does_not(tokenizer):
    environments = Environments(GuessNumber)
    turns = make_turns(tokenizer, environments=environments)
    row = asked(tokenizer, seed=make_rows(2)[1]["seed"])
    state = random.getstate()
    (games,) = turns.run(Script(tokenizer, halve), [row], 2, SamplingParams(max_new_tokens=4000, seed=1))
    assert random.getstate() == state, "the run's own random numbers are not the game's"
    numbers = {game.environment._game.state.game_state["game_number"] for game in games}
    rewards = [game.environment.get_reward() for game in games]
    roles = [turn.message["role"] for turn in games[0].conversation.turns]
    environments.close()
    assert len(numbers) == 1, "all completions of a row play the same game"
    assert rewards == [1.0, 0.0] and [game.reason for game in games] == ["stop", "stop"]
    assert roles == ["assistant", "user"] * (len(roles) // 2) + ["assistant"] and len(roles) > 2
