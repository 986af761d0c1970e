"""Broken files through the command line: status 2, one message, no traceback, no model, and for `check` no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.broken_files import BrokenFile, write_jsonl

from strop.cli import main
from strop.methods.registry import METHODS
from strop.testing.tokenizers import toy_tokenizer

VERBS: dict[str, list[str]] = {}
for _method in METHODS:
    VERBS.setdefault(_method.kind, []).append(_method.verb)


def verb_for(broken: BrokenFile, number: int) -> str:
    """A verb that learns from this kind of rows; the verbs of a kind take turns."""
    verbs = VERBS[broken.kind]
    return verbs[number % len(verbs)]


def trouble(broken: BrokenFile, status: int, captured: Any) -> str | None:
    """What is wrong with what the command line did, None if nothing is."""
    missing = [name for name in broken.names if name not in captured.err]
    if status != 2 or missing or "Traceback" in captured.err:
        return f"{broken.name}: status {status}, {missing} not in {captured.err[:300]!r}"
    return None


def test_check(all_broken_files: list[BrokenFile], capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for number, broken in enumerate(all_broken_files):
        if broken.needs_tokenizer:
            continue
        status = main(["check", str(broken.path), "--method", verb_for(broken, number)])
        found.append(trouble(broken, status, capsys.readouterr()))
    assert len(found) > 300 and not [text for text in found if text], "\n".join(text for text in found if text)


def test_check_in_a_process_of_its_own(all_broken_files: list[BrokenFile]) -> None:
    """All files in one process that may not import torch."""
    files = [broken.path for broken in all_broken_files if not broken.needs_tokenizer][::4]
    code = (
        "import sys\nfrom strop.cli import main\n"
        "status = {main(['check', path]) for path in sys.argv[1:]}\n"
        "print(sorted(status), sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "[2] []", run.stdout[-500:] + run.stderr[-500:]
    assert run.stderr.count("strop check: ") == len(files) and "Traceback" not in run.stderr


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_training_verbs(
    every: int,
    all_broken_files: list[BrokenFile],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is a folder with a tokenizer alone, so loading it would be another error."""
    toy_tokenizer("chatml").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    found = []
    for number, broken in enumerate(all_broken_files):
        if number % every:
            continue
        verb = verb_for(broken, number // every)
        extra = ["--reward_funcs", "builtins.len"] if broken.kind == "prompt_only" else []
        extra += ["--teacher_model", "model"] if verb == "gkd" else []
        status = main([verb, "--model", "model", "--dataset", str(broken.path), "--use_cpu", *extra])
        found.append(trouble(broken, status, capsys.readouterr()))
    assert len(found) >= 300 // every and not [text for text in found if text], "\n".join(t for t in found if t)


def test_the_model_would_have_been_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows in order the same command fails on the model: the checks above came before it."""
    toy_tokenizer("chatml").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "good.jsonl", [{"prompt": "the", "chosen": " ant", "rejected": " bee"}] * 2)
    assert main(["dpo", "--model", "model", "--dataset", "good.jsonl", "--use_cpu"]) == 2
    assert "good.jsonl" not in (said := capsys.readouterr().err) and "model" in said
