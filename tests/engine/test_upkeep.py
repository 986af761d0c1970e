"""The reference as a run wants it: what cannot follow is refused at once, what is known is not held."""

from __future__ import annotations

import gc
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig

from strop.errors import ConfigError, SetupError
from strop.model import apply_peft
from strop.rewards import calls
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

LORA = {"r": 2, "target_modules": ["q_proj"]}


def base(**options: Any) -> Any:
    return tiny_model("llama", dtype=torch.float32, vocab_size=288, **options)


@pytest.mark.parametrize("verb", ["dpo", "kto", "bco", "xpo", "grpo", "rloo", "ppo", "online-dpo", "nash-md"])
def test_an_adapter_that_would_be_mixed_is_refused_when_the_trainer_is_made(verb: str, tmp_path: Path) -> None:
    options = {"sync_ref_model": True, **({"beta": 0.1} if verb in ("grpo", "rloo") else {})}
    with pytest.raises(ConfigError, match="set ref_model_mixup_alpha=1"):
        make_trainer(verb, tmp_path, model=base(), trainer={"peft_config": LoraConfig(**LORA)}, **options)


def test_what_cannot_follow_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set ref_model_mixup_alpha=1"):
        make_trainer("dpo", tmp_path, model=apply_peft(base(), dict(LORA)), sync_ref_model=True)
    with pytest.raises(ConfigError, match="differ in name or shape"):
        make_trainer("dpo", tmp_path, model=base(), trainer={"ref_model": base(hidden_size=16)}, sync_ref_model=True)
    options = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1, "max_steps": 2}
    make_trainer("dpo", tmp_path, model=apply_peft(base(), dict(LORA)), **options).train()


@pytest.mark.parametrize("sets", ["one", "several"])
def test_an_evaluation_stream_cannot_be_scored_ahead(sets: str, tmp_path: Path) -> None:
    stream = IterableDataset.from_generator(lambda: iter(rows_for("dpo", 4)))
    with pytest.raises(ConfigError, match=r"(?s)stream.*precompute_ref_log_probs=True"):
        rows = stream if sets == "one" else {"list": rows_for("dpo", 4), "stream": stream}
        make_trainer("dpo", tmp_path, eval_rows=rows, precompute_ref_log_probs=True)


@pytest.mark.parametrize("verb", ["dpo", "kto"])
def test_a_reference_whose_log_probs_are_known_is_not_held(verb: str, tmp_path: Path) -> None:
    rows, other = rows_for(verb, 8), rows_for(verb, 4, seed=1)
    lines = []
    for ahead in (False, True):
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "epoch"}
        trainer = make_trainer(
            verb, tmp_path / str(ahead), rows=rows, eval_rows=rows[:4], precompute_ref_log_probs=ahead, **options
        )
        held = weakref.ref(trainer.reference.model)
        trainer.train()
        lines.append([line.get("loss", line.get("eval_loss")) for line in trainer.state.log_history[:-1]])
    gc.collect()
    assert held() is None and trainer.ref_model is None
    assert lines[0] == pytest.approx(lines[1], abs=1e-9) and len(lines[0]) == 3
    with pytest.raises(SetupError, match="let go"):
        trainer.evaluate(other)
    trainer.train()  # what is known stays known


def test_log_probs_are_found_by_a_run_that_moved_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        options = {"precompute_ref_log_probs": True, "save_strategy": "epoch"}
        trainer = make_trainer("dpo", tmp_path / "run", rows=rows_for("dpo", 4), **options)
        trainer.train()
    assert trainer.args.output_dir == str(tmp_path / "run-2")
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Reference log-probs"))
    assert ": 4 rows computed, none taken" in first and ": 0 rows computed, the others taken" in second


def test_the_watchdog_writes_where_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def watched(*args: Any, directory: str | None, **settings: Any) -> AbstractContextManager[None]:
        asked.append(directory)
        return nullcontext()

    monkeypatch.setattr(calls, "watch_over", watched)
    for _ in range(2):
        trainer = make_trainer(
            "grpo", tmp_path / "run", rows=rows_for("grpo", 4), max_steps=1, save_steps=1, save_strategy="steps"
        )
        trainer.train()
    assert list(dict.fromkeys(asked)) == [str(tmp_path / "run"), str(tmp_path / "run-2")]
