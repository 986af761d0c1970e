"""What the pages tell a reader to type is typed here, in order, in a folder with the files that they name."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strop.cli import main
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/start.md",
    "docs/data.md",
    "docs/rewards.md",
    "docs/exporting.md",
    "docs/lora.md",
    "docs/trackers.md",
)
"""In the order in which they are run: later ones use the folders of earlier ones."""
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_HERE = ("strop chat", "strop run", "strop vllm-serve", "--serve", "...")
"""Commands that wait for a person, start a server, or have a place to fill in."""
CHANGED = {
    "per_device_train_batch_size=16": "per_device_train_batch_size=8, max_steps=1, max_completion_length=4",
    "--report_to tensorboard ": "--report_to none ",
}
"""A run of a real size is made a short one; trackers are packages of their own."""


def blocks_of(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands_of(block: str) -> Iterator[str]:
    """The commands of strop in a console block, without comments."""
    for line in block.splitlines():
        command = shlex.join(shlex.split(line.removeprefix("$ "), comments=True))
        if line.startswith("$ strop ") and not any(word in command for word in NOT_HERE):
            yield command


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A reader's folder: a model under the id that the pages use, and the files that they name."""
    desk = tmp_path
    tokenizer = toy_tokenizer()
    home = "Qwen/Qwen3-0.6B"
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(desk / home)
    tokenizer.save_pretrained(desk / home)
    pairs = [{"prompt": f"say {n}", "chosen": f" {n}", "rejected": f" no {n}"} for n in "abcdefgh"]
    for name in ("pairs.jsonl", "held_out.jsonl", "prompts.jsonl"):
        rows = [{"prompt": pair["prompt"] + name[0]} if name == "prompts.jsonl" else pair for pair in pairs]
        (desk / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "mine.py").write_text("def polite(completions, **_):\n    return ['please' in c for c in completions]\n")
    return desk


def test_what_the_pages_show_runs(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for page in PAGES:
        assert run_page(page), f"{page} shows nothing that runs here: take it out of PAGES"


def run_page(page: str) -> int:
    """How many pieces of code and commands of a page ran."""
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for kind, text in blocks_of(page):
        for shown, here in CHANGED.items():
            text = text.replace(shown, here)
        if kind == "python":
            exec(compile(text, page, "exec"), names)
            ran += 1
        else:
            for command in commands_of(text):
                assert main(shlex.split(command)[1:]) == 0, command
                ran += 1
    return ran


def test_every_link_between_pages_leads_somewhere() -> None:
    generated = {"metrics.md", "settings.md", "mathematics.md", "contributing.md"}
    lost = []
    for page in (ROOT / "docs").glob("*.md"):
        for link in re.findall(r"\]\(([\w/.-]+\.md)", page.read_text(encoding="utf-8")):
            if link not in generated and not link.startswith("methods/") and not (page.parent / link).exists():
                lost.append(f"{page.name}: {link}")
    assert not lost


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    assert "methods/dpo/" in (tmp_path / "llms.txt").read_text(encoding="utf-8")
    walk = (tmp_path / "methods" / "dpo" / "index.html").read_text(encoding="utf-8")
    assert "DPOTrainer.loss" in walk and "loss_weights" in walk
