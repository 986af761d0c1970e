"""Plain `TrainingArguments`: every value counts, whether or not it equals transformers' default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from strop.engine.arguments import resolve_config
from strop.methods.registry import METHODS


def plain(tmp_path: Path, **values: Any) -> TrainingArguments:
    return TrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **values})


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
def test_a_value_that_is_transformers_default_is_kept(
    method: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    args = resolve_config(method.config(), plain(tmp_path, learning_rate=5e-5, logging_steps=500))
    assert type(args) is method.config()
    assert (args.learning_rate, args.logging_steps) == (5e-5, 500)
    line = capsys.readouterr().out.splitlines()[0]
    default = method.config()(output_dir=str(tmp_path), use_cpu=True).learning_rate
    assert f"learning_rate=5e-05 ({method.config_name}: {default!r})" in line
    assert "logging_steps=500" in line and "output_dir" not in line and "seed" not in line


def test_written_values_arrive_and_are_not_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    written: dict[str, Any] = {
        "learning_rate": 1e-3, "per_device_train_batch_size": 4, "num_train_epochs": 2, "lr_scheduler_type": "cosine",
        "weight_decay": 0.1, "seed": 7, "optim": "sgd", "max_grad_norm": 0.3, "logging_first_step": True,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "logging_steps": 3,
    }  # fmt: skip
    args = resolve_config(METHODS[0].config(), plain(tmp_path, **written))
    assert {name: getattr(args, name) for name in written} == written
    assert "learning_rate" not in capsys.readouterr().out


def test_what_has_no_effect_here_is_refused_only_where_it_was_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        resolve_config(METHODS[0].config(), plain(tmp_path, label_smoothing_factor=0.1))
