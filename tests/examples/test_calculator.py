"""The calculator agent runs, and its reward is that of the conversation."""

from __future__ import annotations

import pytest
from examples.calculator import add, calculator_reward, main, make_rows, multiply
from tests.support.templates import KINDS, tokenizer_with

from strop.testing.tiny import tiny_model


def called(name, **arguments):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_the_reward_counts_right_calls_and_the_answer():
    (row,) = make_rows(1)
    a, b, c = row["numbers"]
    right = [called("add", a=b, b=a), called("multiply", a=add(a, b), b=c)]
    said = [{"role": "assistant", "content": f"It is {multiply(a + b, c)}."}]
    given = {"numbers": [[a, b, c]], "answer": [row["answer"]]}
    for conversation, reward in ((right + said, 1.0), (right[:1] + said, 0.75), (right, 0.5), ([called("add")], 0.0)):
        assert calculator_reward([conversation], **given) == [pytest.approx(reward)]


def test_it_runs(tmp_path):
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {
        "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "run", "max_steps": 1, "logging_steps": 1,
        "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 24, "report_to": "none",
        "use_cpu": True, "max_length": 2048,
    }  # fmt: skip
    trainer = main([word for name, value in settings.items() for word in (f"--{name}", str(value))])
    assert trainer.state.log_history[0]["tools/call_frequency"] == 0.0
