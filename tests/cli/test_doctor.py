from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strop.cli import doctor, main
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


def test_a_sound_machine_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    said = capsys.readouterr().out
    assert status == 0 or "GB are free in" in said
    for word in ("versions", "torch 2.", "CPU cores", "free in", "strop[quant]"):
        assert word in said


def test_what_does_not_fit_together_is_named(monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [("torch", ">=2.8,<3", "2.1.0"), ("peft", ">=0.18", ""), ("rich", ">=13", "14.0")]
    monkeypatch.setattr(doctor, "requirements", lambda: iter(asked))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out.partition("amiss")[2]
    assert "torch 2.1.0; strop needs >=2.8,<3" in said and "peft is missing" in said and "rich" not in said


def test_a_dry_run_ends_before_the_first_step_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = toy_tokenizer("plain")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": "owl", "completion": f" ibis {i}"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl"), "--use_cpu"]
    out = tmp_path / "runs" / "x"
    assert main(["doctor", "sft", *words, "--output_dir", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        "rehearsal  two micro-batches" in said
        and "(plan: " in said
        and f"free in {tmp_path}" in said
        and "nothing was trained" in said
    )
    assert not out.parent.exists()
