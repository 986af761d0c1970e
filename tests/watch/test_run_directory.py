from __future__ import annotations

import json

import yaml

from strop.report import write_report
from strop.testing.cases import make_trainer


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
