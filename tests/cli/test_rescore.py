"""`strop rescore`: rewards see what they saw in training, and their agreement is counted."""

from __future__ import annotations

import json

import pytest
import torch
from tests.support.conversations import Script
from tests.support.templates import KINDS, tokenizer_with

from strop.cli import main
from strop.cli.rescore import correlation, same_order
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 20, "b": 22}}\n</tool_call>'
REWARDS = """
def again(completions, prompts, goal, **columns):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [float(len(c)) + g + (c[0]["content"] == "b") for c, g in zip(completions, goal)]

def shy(completions, **columns):
    return [None for _ in completions]
"""


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


def once(completions, goal, **columns):
    return [float(len(c)) + g for c, g in zip(completions, goal, strict=True)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    trainer = make_trainer(
        "grpo", folder, rows=[{"prompt": [{"role": "user", "content": f"go {i}"}], "goal": 10 * i} for i in range(2)],
        model=tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer)), tokenizer=tokenizer,
        trainer={"reward_funcs": once, "tools": [add]}, num_generations=2, max_length=None, max_completion_length=120,
        max_steps=1, logging_steps=1,
    )  # fmt: skip
    trainer._generator = Script(tokenizer, lambda text, i: "b" if i % 2 else "42" if "<r>42</r>" in text else CALL)
    trainer.train()
    (folder / "mine.py").write_text(REWARDS)
    return folder


def test_rewards_see_the_conversation_and_the_columns_again(finished, capsys):
    mine = finished / "mine.py"
    assert main(["rescore", str(finished), "--reward_funcs", f"{mine}:again", f"{mine}:shy"]) == 0
    rows = [json.loads(line) for line in (finished / "rescored.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == len(samples) >= 2
    for row, sample in zip(rows, samples, strict=True):
        alone = len(sample["turns"]) == 1
        assert row["logged"] == sample["reward"] == len(sample["turns"]) + sample["columns"]["goal"]
        assert (
            row["rescored"] == {"again": row["logged"] + alone, "shy": None} and row["total"] == row["logged"] + alone
        )
    _, again, shy, total, _ = capsys.readouterr().out.splitlines()
    assert again.split()[0] == "again" and again.split()[-1] == "1.0000" and total.split()[-1] == "1.0000"
    assert shy.split() == ["shy", "0", "-", "-", "-", "-"]


def test_what_is_no_run_is_named(tmp_path, capsys):
    assert main(["rescore", str(tmp_path), "--reward_funcs", "x"]) == 2
    assert "there is no samples.jsonl" in capsys.readouterr().err
    (tmp_path / "samples.jsonl").write_text("")
    assert main(["rescore", str(tmp_path), "--reward_funcs", "x"]) == 2
    (tmp_path / "samples.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3')
    assert main(["rescore", str(tmp_path), "--reward_funcs", "x"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_agreement_by_hand():
    scored = [("p", 1.0, 0.0), ("p", 2.0, 1.0), ("p", 2.0, 0.5), ("q", 0.0, 1.0), ("q", 1.0, 0.0), ("q", 5.0, 0.0)]
    assert same_order(scored) == pytest.approx((1 + 1 + 0.5 + 0 + 0) / 5)
    assert same_order([("p", 1.0, 0.0), ("q", 2.0, 1.0)]) is None
    assert (
        correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0) and correlation([1.0, 1.0], [0, 1]) is None
    )
