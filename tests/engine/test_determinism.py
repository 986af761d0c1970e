from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from strop.engine.preflight import lines, repeats
from strop.testing.cases import make_trainer

CUDA = torch.device("cuda", 0)


@pytest.fixture
def asked() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.usefixtures("asked")
def test_a_card_repeats_a_run_where_it_is_told_to() -> None:
    torch.use_deterministic_algorithms(False)
    assert repeats(torch.device("cpu")) == "to the last byte"
    assert "full_determinism=True" in repeats(CUDA) and repeats(CUDA).startswith("but for rounding")
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert "warn_only" in repeats(CUDA) and repeats(CUDA).startswith("but for rounding")
    torch.use_deterministic_algorithms(True)
    assert repeats(CUDA).startswith("to the last byte")


def test_a_run_says_so_before_its_first_step(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, rows=[{"prompt": "ant", "completion": "bee"}])
    assert "  repeats    to the last byte" in list(lines(trainer, tmp_path))
