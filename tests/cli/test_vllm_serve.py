from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest

from strop.cli import main
from strop.cli.vllm_serve import server_command
from strop.errors import ConfigError


def test_a_server_for_full_weights() -> None:
    command, settings = server_command(["--model", "m", "--port=8111", "--dtype", "float32", "--enforce-eager"])
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert command[3:] == [
        "--model", "m", "--host", "127.0.0.1", "--port", "8111", "--logprobs-mode", "processed_logprobs",
        "--dtype", "float32", "--enforce-eager",
    ]  # fmt: skip
    assert settings == {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.mark.parametrize(("rank", "room"), [("1", "8"), ("16", "16"), ("20", "32"), ("512", "512")])
def test_a_server_for_adapters(rank: str, room: str) -> None:
    command, settings = server_command(["--model", "m", "--lora-rank", rank])
    assert command[-3:] == ["--enable-lora", "--max-lora-rank", room]
    assert settings == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, "an adapter needs no way to replace the base"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "1"], "--model must be given"),
        (["--model"], "--model needs a value"),
        (["--model", "m", "--lora_rank", "0"], "from 1 to 512; got 0"),
        (["--model", "m", "--lora_rank", "1000"], "from 1 to 512; got 1000"),
        (["--model", "m", "--enable-lora"], "use --lora_rank"),
        (["--model", "m", "--logprobs-mode=raw_logprobs"], "always processed_logprobs"),
    ],
)
def test_flags_that_cannot_be_used_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        server_command(argv)


def test_the_process_becomes_vllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def execve(*given: Any) -> None:
        seen.extend(given)
        raise SystemExit(0)  # the process has become another and never comes back

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("OTHER", "kept")
    with pytest.raises(SystemExit):
        main(["vllm-serve", "--model", "m"])
    path, command, environment = seen
    assert path == sys.executable and command == server_command(["--model", "m"])[0]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1" and environment["OTHER"] == "kept"
    assert "VLLM_SERVER_DEV_MODE=1" in capsys.readouterr().out, "the command is shown, so that it can be run by hand"


def test_without_vllm_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["vllm-serve", "--model", "m"]) == 2
    assert "pip install 'strop[vllm]'" in capsys.readouterr().err
    assert main(["vllm-serve", "--help"]) == 0
    assert "--lora_rank" in capsys.readouterr().out
