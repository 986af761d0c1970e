"""The page of what works with what: it says what was measured, and a tenth of it is measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.support import page
from benchmarks.support.__main__ import results, run
from benchmarks.support.architecture import measure
from benchmarks.support.configs import ARCHITECTURES, small_config
from benchmarks.support.subjects import subjects
from packaging.version import Version
from tests.support.patience import with_patience

RIGHT: dict[str, Any] = {
    "class": "C", "built": "1 parameters", "precision": "float64", "layout": "tree", "why": "", "engine": "native",
    "engine_why": "", "logps": 1e-9, "own_padding": 1.0, "gradients": 1e-9, "sampler": 1e-6, "dpo_start": 0.0,
    "grpo_start": 0.0, "sft_saved": 0.0, "reward_saved": 0.0, **dict.fromkeys(page.METHODS, "ok"),
}  # fmt: skip
TENTH = sorted(results())[::10]


def test_an_architecture_measured_now_is_right(tmp_path: Path) -> None:
    row = measure("cohere", tmp_path)
    assert page.verdict(row) == ("right", []) and row["layout"] == "tree" and row["engine"] == "native"


@pytest.mark.parametrize(
    ("flaw", "kind", "words"),
    [
        ({"logps": 2e-5}, "not right", "logps 2.0e-05"),
        ({"gradients": float("nan")}, "not right", "gradients nan"),
        ({"dpo_start": 0.01}, "not right", "dpo_start 1.0e-02"),
        ({"reward": "RuntimeError: shapes"}, "not right", "reward: RuntimeError: shapes"),
        ({"reward_saved": "SetupError: damaged"}, "not right", "reward_saved SetupError: damaged"),
        (dict.fromkeys(page.METHODS, "SetupError: no"), "refused", "SetupError: no"),
        ({"failed": "no result within 9 s"}, "not right", "no result within 9 s"),
        ({"sampler": None, "engine": "KeyError: x"}, "not right", "engine: KeyError: x"),
    ],
)
def test_a_verdict_names_every_flaw(flaw: dict[str, Any], kind: str, words: str) -> None:
    assert page.verdict(RIGHT) == ("right", [])
    assert page.verdict(RIGHT | flaw) == (kind, [words])


def test_no_cell_is_empty() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| |"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert all(cells[:1] + cells[2:]) or cells[0] == "architecture", line


def test_every_architecture_is_on_the_page() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert [arch for arch in ARCHITECTURES if f"\n| {arch} | " not in text] == []


@with_patience(2, 30)
def test_a_subject_that_hangs_or_dies_is_a_result(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    import os
    import time

    made = {
        "hangs": lambda folder: time.sleep(600),
        "dies": lambda folder: os._exit(3),
        "works": lambda folder: {"a": 1},
    }
    monkeypatch.setattr("benchmarks.support.subjects.subjects", lambda: made)
    found = {row["subject"]: row for row in run(list(made), limit=seconds)}
    assert found["hangs"]["failed"] == f"no result within {seconds} s" and "code 3" in found["dies"]["failed"]
    assert found["works"] == {"subject": "works", "a": 1}


def test_small_configs_have_one_layer_of_each_kind() -> None:
    assert set(small_config("gemma3_text").layer_types) == {"sliding_attention", "full_attention"}
    assert small_config("gemma3").get_text_config().hidden_size == 32


def test_what_reads_the_whole_text_is_refused_but_for_rewards() -> None:
    refused = dict.fromkeys(("sft", "dpo", "grpo"), "SetupError: looks ahead")
    assert page.verdict(RIGHT | refused)[0] == "refused"
    assert page.verdict(RIGHT | refused | {"reward": "KeyError: 'x'"})[0] == "not right"
    assert page.verdict({"arch": "x", "built": "SetupError: an encoder-decoder"})[0] == "refused"


def test_no_architecture_is_wrong_without_a_word() -> None:
    assert [name for name, row in results().items() if " | " not in name and page.verdict(row)[0] == "not right"] == []


def test_the_oldest_versions_are_those_that_were_tried() -> None:
    from benchmarks.support.versions import oldest

    found = json.loads(page.VERSIONS.read_text(encoding="utf-8"))
    assert {name: Version(found["oldest"]["versions"][name]) for name in oldest()} == {
        name: Version(pin.removeprefix("==")) for name, pin in oldest().items()
    }
    assert {word for row in found.values() for word in row["found"].values()} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("subject", TENTH)
def test_a_tenth_of_the_page_is_so_today(subject: str, tmp_path: Path) -> None:
    known, now = results()[subject], {"subject": subject, **subjects()[subject](tmp_path)}
    json.dumps(now)
    if " | " in subject:
        assert (now["result"], now.get("still")) == (known["result"], known.get("still"))
    else:
        assert page.verdict(now)[0] == page.verdict(known)[0]
        assert (now.get("layout"), now.get("engine")) == (known.get("layout"), known.get("engine"))
