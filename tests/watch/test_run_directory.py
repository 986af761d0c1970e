from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch
import yaml

from strop.report import write_report
from strop.testing.cases import make_trainer, rows_for
from strop.watch.run_directory import append_jsonl, drop_after


def test_secrets_of_the_settings_are_in_no_file_of_a_run(tmp_path):
    secret = "hf_" + "Q7x9" * 8
    trainer = make_trainer("sft", tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.args.model_init_kwargs = {"token": "plainly-secret", "revision": "main", "nested": [{"api_key": secret}]}
    trainer.args.hub_token = secret
    assert "plainly-secret" not in str(trainer.args.to_dict()) and secret not in str(trainer.args.to_dict())
    trainer.train()
    assert trainer.args.model_init_kwargs["token"] == "plainly-secret"  # the run itself still has it
    write_report(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["model_init_kwargs"] == {"token": "***", "revision": "main", "nested": [{"api_key": "***"}]}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4 and (tmp_path / "checkpoint-1").is_dir()
    for path in files:
        content = path.read_bytes()
        assert b"plainly-secret" not in content and secret.encode() not in content, path.name


def test_the_step_of_a_line_is_the_runs(tmp_path):
    trainer = make_trainer("sft", tmp_path, max_steps=1)
    trainer.train()
    trainer.log({"step": 99.0, "mine": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1} and lines[-1]["mine"] == 1.0


STRANGE = "a\u2028b\u0085c\x0b\ud800"


def test_what_a_run_said_before_never_keeps_it_from_going_on(tmp_path):
    path = tmp_path / "samples.jsonl"
    append_jsonl(path, [{"step": 1, "completion": STRANGE}, {"step": 2, "completion": STRANGE}])
    damaged = [b'{"step": 1, "comp\xff\x00\n', b"[1]\n", b'{"step": "one"}\n', b"[" * 9999 + b"\n"]
    path.write_bytes(b"".join([*damaged, path.read_bytes(), b'{"step": 3, "cut o']))
    drop_after(path, 2)  # completions to learn from are written within the step that follows
    lines = path.read_bytes().split(b"\n")
    assert [line + b"\n" for line in lines[:4]] == damaged  # nothing that somebody might still want to see is removed
    assert json.loads(lines[4])["completion"] == STRANGE and lines[5:] == [b""]


@pytest.mark.parametrize("buffered", [{}, {"num_iterations": 2}])
def test_a_run_that_is_gone_on_with_keeps_each_completion_once(buffered, tmp_path):
    """A step's own completions are written before it ends, those of an evaluation after it."""

    def samples(resume):
        trainer = make_trainer(
            "grpo", tmp_path, eval_rows=rows_for("grpo", 2), max_steps=3, save_strategy="steps", save_steps=1,
            eval_strategy="steps", eval_steps=1, generate_during_eval=True, dtype=torch.float32, **buffered,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        lines = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
        return [(row["step"], row.get("evaluation", False), row["prompt"], row["completion"]) for row in lines]

    whole = samples(None)
    assert {row[:2] for row in whole} >= {(0, False), (2, False), (1, True), (2, True), (3, True)}
    assert samples(str(tmp_path / "checkpoint-2")) == whole
    assert samples(str(tmp_path / "checkpoint-1")) == whole


def test_lines_that_a_full_disk_refuses_are_named_and_leave_whole_lines(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": 1}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        append_jsonl(path, [{"step": 2, "text": "x" * 100_000}])
        append_jsonl(path, [{"step": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
    assert str(path) in caplog.text and "File too large" in caplog.text


def test_arrays_in_a_row_are_lists(tmp_path):
    """An agent, a rollout function or a data set may have a column of them."""
    given = {"one": np.float32(0.5), "two": np.array([1.0, np.nan]), "three": torch.ones(2), "four": torch.tensor(4)}
    append_jsonl(tmp_path / "rows.jsonl", [given])
    read = json.loads((tmp_path / "rows.jsonl").read_text())
    assert read == {"one": 0.5, "two": [1.0, None], "three": [1.0, 1.0], "four": 4}
