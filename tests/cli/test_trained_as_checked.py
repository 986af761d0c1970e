"""What `strop check` shows of rows in public layouts is what `strop METHOD` trains on, prompts included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.test_layouts import ANSWERED, OWN_ANSWERS, PAIRS, TURNS, bot, user
from tests.support.broken_files import write_jsonl

from strop.cli import main
from strop.engine.step_trainer import StepTrainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ANSWERS = {"chosen": " good", "rejected": " bad"}
TALKS = "\n\nHuman: which ant?\n\nAssistant: that one.\n\nHuman: why?\n\nAssistant:"
WHOLE: list[dict[str, Any]] = [
    {"chosen": f"{TALKS} it is good", "rejected": f"{TALKS} it is bad"},  # Anthropic/hh-rlhf
    {
        "prompt": "which ant?",  # HuggingFaceH4/ultrafeedback_binarized
        "chosen": [user("which ant?"), bot("good")],
        "rejected": [user("which ant?"), bot("bad")],
        "score_chosen": 9.0,
        "score_rejected": 2.0,
    },
    {"chosen": [user("which ant?"), bot("good")], "rejected": [user("which ant?"), bot("bad")]},  # trl-lib sets
    {"prompt": "which ant?", **ANSWERS},
]
COMPARED = [{**ANSWERS, **row} for _, row, _ in PAIRS] + [row for _, row, _ in OWN_ANSWERS] + WHOLE
ANSWERED_ROWS = [row for _, row, *_ in (*ANSWERED, *TURNS) if "ant" in json.dumps(row)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = toy_tokenizer("chatml")
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


@pytest.mark.parametrize(
    ("verb", "rows"), [("dpo", COMPARED), ("reward", COMPARED), ("kto", COMPARED), ("sft", ANSWERED_ROWS)]
)
def test_every_layout(verb: str, rows: list[dict[str, Any]], model: tuple[Path, Any], tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """All layouts in one file: two steps over them."""
    folder, tokenizer = model
    monkeypatch.setattr("strop.cli.row_view.ROWS", 100)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(["check", str(tmp_path / "rows.jsonl"), "--method", verb, "--model", str(folder), "--json"]) == 0
    (checked,) = json.loads(capsys.readouterr().out)
    assert not [finding for finding in checked["sets"]["train"]["findings"] if finding["severity"] == "error"]
    shown = sorted(
        tuple("".join(text for text, _ in part) for part in row["parts"].values()) for row in checked["rows"]
    )
    trained = []
    make_work = StepTrainer.make_work

    def kept(self: StepTrainer, examples: list[Any]) -> Any:
        own = 1 if verb == "kto" else 2  # KTO's second completion is another row's, for its KL term
        trained.extend(list(filter(None, (e.prompt_ids, *e.completions[:own]))) for e in examples)
        return make_work(self, examples)

    monkeypatch.setattr(StepTrainer, "make_work", kept)
    count = len(shown)
    flags = {"model": folder, "dataset": tmp_path / "rows.jsonl", "output_dir": tmp_path / "run", "max_steps": 2,
             "per_device_train_batch_size": -(-count // 2), "report_to": "none", "rehearsal": "false"}  # fmt: skip
    assert main([verb, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    assert sorted(tuple(tokenizer.decode(ids) for ids in parts) for parts in trained) == shown
    assert count == len(rows) * (2 if verb == "kto" else 1)
    assert all("which" in row[0] and "ant" in row[0] for row in shown), shown
