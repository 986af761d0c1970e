import subprocess
from collections.abc import Callable

import pytest

from strop.cli import completion, main
from strop.cli.completion import SCRIPTS

FLAGS = {"dpo": ["beta", "model"], "plan": ["gpus"]}


def completed(words: str, script: str) -> list[str]:
    """What bash offers for a line, the cursor at its end."""
    last = len(words.split(" ")) - 1
    ask = f"COMP_WORDS=({words if not words.endswith(' ') else words + chr(39) * 2}); COMP_CWORD={last}; _strop"
    asked = f"{script}\n{ask}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [("strop d", ["dpo"]), ("strop dpo --b", ["--beta"]), ("strop plan --", ["--gpus"]), ("strop plan gr", ["grpo"]),
     ("strop dpo --model f", [])],
)  # fmt: skip
def test_bash_completes_verbs_flags_and_methods(words: str, offered: list[str]) -> None:
    assert completed(words, SCRIPTS["bash"](FLAGS)) == offered


@pytest.mark.parametrize("make", [SCRIPTS["zsh"], SCRIPTS["fish"]], ids=["zsh", "fish"])
def test_other_shells_know_the_same(make: Callable[..., str]) -> None:
    assert {"dpo", "beta", "gpus"} <= set(make(FLAGS).replace("--", " ").replace("'", " ").split())


def test_every_verb_is_completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = completion.flags_by_verb()
    assert {"max_length", "lora", "config"} <= set(flags["dpo"]) and "json" in flags["check"] and "report" in flags
    monkeypatch.setattr(completion, "flags_by_verb", lambda: FLAGS)
    assert main(["completion", "fish"]) == 0 and "-l beta" in capsys.readouterr().out
    assert main(["completion", "bsh"]) == 2
    assert "Did you mean" in capsys.readouterr().err
