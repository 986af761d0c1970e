"""docs/adding-a-method.md, as a stranger follows it: a package of one file gets a verb, a report and the checks."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.cli import main
from strop.errors import ConfigError
from strop.methods import registry
from strop.methods.registry import BY_CLASS, BY_VERB, Method, register
from strop.testing.cases import rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `strop new` writes, as an installer would lay it down, and strop as it was afterwards."""
    folder = tmp_path_factory.mktemp("site")
    assert main(["new", "method", "rank", "--folder", str(folder)]) == 0
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"strop_rank-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["strop.methods"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[strop.methods]", *lines]) + "\n")
    verbs, classes = dict(BY_VERB), dict(BY_CLASS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for table, before in ((BY_VERB, verbs), (BY_CLASS, classes)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]
    for name in ("strop_rank", "test_rank"):
        sys.modules.pop(name, None)


def test_the_page_shows_what_is_written(package: Path) -> None:
    blocks = dict(re.findall(r"^## .*?`([\w.]+)`\n.*?^```\w+\n(.*?)^```$", PAGE.read_text(), re.S | re.M))
    assert blocks == {
        name: (package / name).read_text() for name in ("strop_rank.py", "pyproject.toml", "test_rank.py")
    }


def test_it_has_a_verb_and_a_report(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert re.search(r"^  rank +a method of strop-rank$", capsys.readouterr().out, re.M)
    assert "strop_rank" not in sys.modules, "help must not wait for torch"
    assert main(["rank", "--help"]) == 0
    assert (
        "--nll_weight" in (said := capsys.readouterr().out) and "Weight of the chosen completion's likelihood." in said
    )
    tokenizer = toy_tokenizer("plain")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_for("rank", 8)))
    flags = {"model": tmp_path / "model", "dataset": data, "output_dir": tmp_path / "run", "max_steps": 2}
    flags |= {"margin": 0.5, "report_to": "none", "logging_steps": 1}
    assert main(["rank", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Mean log-probability of chosen minus rejected." in page and "rises to the margin" in page
    charts = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)[1])["charts"]  # type: ignore[index]
    assert [chart["title"] for chart in charts][:2] == ["loss", "rank/gap"], "what it lives by is seen at a glance"
    assert "rank/gap" in capsys.readouterr().out.partition("/2  loss ")[2][:40], "and in the terminal"
    assert main(["check", "--method", "rank", str(data)]) == 0 and main(["check", str(data)]) == 0
    assert "rank" in capsys.readouterr().out.rpartition("These rows fit:")[2]
    assert main(["recommend", str(data)]) == 0 and "rank, a method of strop-rank" in capsys.readouterr().out
    assert main(["plan", "rank", "--model", str(tmp_path / "model")]) == 0 and "It fits." in capsys.readouterr().out
    assert main(["rank", "--model", "m", "--dataset", str(data), "--margin", "-1"]) == 2
    assert "margin" in capsys.readouterr().err


def test_it_passes_the_checks(package: Path) -> None:
    registry.register_installed()
    importlib.import_module("test_rank").test_rank()


def test_names_that_are_taken_are_refused() -> None:
    for method in (Method("dpo", "Mine", "", home="elsewhere"), Method("mine", "DPO", "", home="elsewhere")):
        with pytest.raises(ConfigError, match=r"belong to 'dpo' of strop\.methods\.dpo"):
            register(method)
    assert "mine" not in BY_VERB and "MineTrainer" not in BY_CLASS
    register(BY_VERB["dpo"])
