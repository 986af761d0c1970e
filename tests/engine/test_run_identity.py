"""A folder knows its run: nobody's checkpoints are lost to a neighbour, and no run goes on from another one's."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.support.crash import tiny_run

from strop.cli.train import refuse_used_folder
from strop.engine.checkpoint import checkpoints, find_checkpoint, newest_valid, write_manifest
from strop.engine.run_identity import RunLock, identity
from strop.errors import CheckpointError, ConfigError, SetupError


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after four steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(str(folder), epochs=2).train()
    return folder


@pytest.fixture
def used(yesterday: Path, tmp_path: Path) -> Path:
    shutil.copytree(yesterday, tmp_path / "run")
    return tmp_path / "run"


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in checkpoints(folder))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_new_run_in_a_used_folder_keeps_both(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: weights(path) for path in checkpoints(used)}
    trainer = tiny_run(str(used), epochs=1, save_total_limit=1, seed=7)
    trainer.train()
    assert {path.name: weights(path) for path in checkpoints(used)} == before
    assert trainer.args.output_dir == f"{used}-2" and steps(Path(f"{used}-2")) == [2]
    assert "holds another run" in capsys.readouterr().out


def test_overwriting_removes_the_other_run(used: Path) -> None:
    trainer = tiny_run(str(used), epochs=1, overwrite_output_dir=True, seed=7)
    trainer.train()
    assert trainer.args.output_dir == str(used) and steps(used) == [1, 2]
    lines = [json.loads(line) for line in (used / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 2


def test_a_checkpoint_elsewhere_is_not_removed_with_the_link_to_it(used: Path, tmp_path: Path) -> None:
    shutil.move(used / "checkpoint-1", tmp_path / "kept")
    (used / "checkpoint-1").symlink_to(tmp_path / "kept")
    (tmp_path / "mine").mkdir()
    (used / ".partial-checkpoints").symlink_to(tmp_path / "mine")
    before = weights(tmp_path / "kept")
    tiny_run(str(used), epochs=1, overwrite_output_dir=True, save_total_limit=1, seed=7).train()
    assert weights(tmp_path / "kept") == before and not list((tmp_path / "mine").iterdir())
    assert steps(used) == [2] and not (used / "checkpoint-2").is_symlink()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_said_and_trained_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("strop.engine.run_identity.FileLock.acquire", mock.Mock(side_effect=error))
    RunLock(tmp_path).acquire()
    assert f"{tmp_path / '.run.lock'} cannot be locked" in caplog.text


def test_the_command_line_asks(used: Path) -> None:
    args: Any = tiny_run(str(used)).args
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite_output_dir"):
        refuse_used_folder(args)


def test_two_runs_at_once_are_refused_by_name(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    try:
        with pytest.raises(SetupError, match=r"Another run works in .* now \(process \d+\)"):
            tiny_run(str(tmp_path), epochs=1).train()
    finally:
        lock.release()
    tiny_run(str(tmp_path), epochs=1).train()
    assert steps(tmp_path) == [1, 2]


def test_nothing_of_a_run_that_goes_on_is_removed(used: Path) -> None:
    lock = RunLock(used)
    lock.acquire()
    try:
        trainer = tiny_run(str(used), epochs=1, overwrite_output_dir=True)
        with pytest.raises(SetupError, match="Another run works in"):
            trainer.train()
        assert steps(used) == [1, 2, 3, 4] and trainer.run_lock is None
    finally:
        lock.release()


def test_a_finished_run_is_finished(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_run(str(used), epochs=2)
    result = trainer.train(resume_from_checkpoint=True)
    assert result.global_step == trainer.state.global_step == 4 and steps(used) == [1, 2, 3, 4]
    assert "nothing left to train" in capsys.readouterr().out
    trainer.save_model(str(used / "saved"))
    assert weights(used / "saved") == weights(used / "checkpoint-4")


def test_a_run_with_more_epochs_goes_on(used: Path) -> None:
    tiny_run(str(used), epochs=3, lr_scheduler_type="linear").train(resume_from_checkpoint=True)
    assert 6 in steps(used)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"verb": "orpo"}, "method: 'dpo', now 'orpo'"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"beta": 0.9}, "beta"),
        ({"weight_decay": 0.3, "seed": 3}, "weight_decay"),
    ],
)
def test_another_run_is_refused_by_what_differs(used: Path, change: dict[str, Any], named: str) -> None:
    trainer = tiny_run(str(used), **change)
    with pytest.raises(CheckpointError, match="is of another run") as error:
        trainer.train(resume_from_checkpoint=True)
    assert named in str(error.value)


@pytest.mark.parametrize("change", [{"logging_steps": 3}, {"save_total_limit": 2}, {"eval_strategy": "no"}])
def test_what_changes_no_number_is_taken(used: Path, change: dict[str, Any]) -> None:
    shutil.rmtree(used / "checkpoint-4")
    tiny_run(str(used), epochs=2, **change).train(resume_from_checkpoint=True)
    assert max(steps(used)) == 4


def test_any_number_of_actors_samples_for_the_same_run() -> None:
    """They draw what one engine draws, and the error that names a late one says to change these."""
    model, settings = torch.nn.Linear(1, 1), {"engine": "ray", "ray_workers": 2, "ray_timeout": 9.0}
    facts = identity("grpo", settings, model)
    assert facts == identity("grpo", {**settings, "ray_workers": 5, "ray_timeout": 60.0}, model)
    assert facts != identity("grpo", {**settings, "engine": "native"}, model)


def test_another_rank_of_the_adapter_is_another_run(tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = {"target_modules": ["q_proj"], "lora_dropout": 0.0}
    tiny_run(str(tmp_path), epochs=1, trainer={"peft_config": LoraConfig(r=2, **adapter)}).train()
    other = tiny_run(str(tmp_path), epochs=2, trainer={"peft_config": LoraConfig(r=4, **adapter)})
    with pytest.raises(CheckpointError, match="adapter's r: 2, now 4"):
        other.train(resume_from_checkpoint=True)


def test_a_renamed_checkpoint_is_noticed(used: Path) -> None:
    (used / "checkpoint-4").rename(used / "checkpoint-40")
    with pytest.raises(CheckpointError, match="checkpoint-4 and has been renamed"):
        tiny_run(str(used), epochs=2).train(resume_from_checkpoint=True)


def test_a_flipped_bit_in_a_manifest_is_found_and_passed_over(used: Path) -> None:
    path = used / "checkpoint-4" / "manifest.json"
    path.write_text(path.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.003'))
    folder, skipped = newest_valid(used)
    assert folder == used / "checkpoint-3" and "manifest has other contents" in skipped[0]


ODD = ["[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"a": 1}}', "", "{", "[" * 5000, '{"files": null}']


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_manifests_are_passed_over(used: Path, text: str) -> None:
    (used / "checkpoint-4" / "manifest.json").write_text(text)
    folder, skipped = newest_valid(used)
    assert folder == used / "checkpoint-3" and len(skipped) == 1 and "manifest" in skipped[0]


@pytest.mark.parametrize(
    ("saved", "now", "said"),
    [
        ({}, {}, 1),
        ({}, {"vllm_importance_sampling_correction": False}, 0),
        ({}, {"engine": "native"}, 0),
        ({"vllm_importance_sampling_correction": True}, {}, 0),
        ({"vllm_importance_sampling_correction": False}, {}, "changed"),
    ],
    ids=["older", "as before", "another engine", "known", "switched"],
)
def test_a_run_that_is_corrected_from_here_on_is_told(
    saved: dict[str, Any], now: dict[str, Any], said: Any, tmp_path: Path
) -> None:
    """RLOO's checkpoints on vLLM from before its correction, which is on by default."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    run = {"method": "rloo", "engine": "vllm"}
    write_manifest(folder, 2, {**run, **saved})
    now = {**run, "vllm_importance_sampling_correction": True, **now}
    lines: list[str] = []
    if said == "changed":
        with pytest.raises(CheckpointError, match="vllm_importance_sampling_correction: False, now True"):
            find_checkpoint(True, str(tmp_path), now, lines.append)
        return
    if "engine" in now and now["engine"] != "vllm":
        write_manifest(folder, 2, {**run, **saved, "engine": now["engine"]})
    assert find_checkpoint(True, str(tmp_path), now, lines.append) == folder
    told = [line for line in lines if "vllm_importance_sampling_correction=True" in line]
    assert len(told) == said and all("rloo did not have" in line and "to False" in line for line in told)
