"""A vLLM server that fails in the middle of a run: the run ends in bounded time, says why, and can be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.patience import with_patience

from strop.engine.checkpoint import newest_valid
from strop.errors import RolloutError
from strop.testing.cases import make_trainer

STALL = 60.0
"""Seconds for which a server stalls."""


def run(stub: Any, folder: Path, timeout: float = STALL) -> Any:
    """A trainer whose policy is what the server serves."""
    trainer = make_trainer(
        "grpo",
        folder,
        num_generations=2,
        per_device_train_batch_size=4,
        engine="vllm",
        vllm_mode="server",
        vllm_server_base_url=stub.url,
        vllm_server_timeout=timeout,
        max_completion_length=4,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
    )
    stub.model = trainer.model
    return trainer


def stall(stub: Any, handler: Any) -> None:
    stub.released.wait(STALL)


def refuse(stub: Any, handler: Any) -> None:
    stub.send(handler, "engine is dead", 500)


def hang_up(stub: Any, handler: Any) -> None:
    handler.connection.close()


def die(stub: Any, handler: Any) -> None:
    stub.http.server_close()  # nobody is let in any more
    handler.connection.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc"], ids=["sampling", "sync"])
@pytest.mark.parametrize(
    ("trouble", "said"),
    [(stall, "within"), (refuse, "500: engine is dead"), (hang_up, "died"), (die, "not running, or died")],
    ids=["stalls", "refuses", "hangs up", "dies"],
)
@with_patience(1.5, 20.0)
def test_a_server_that_fails_ends_the_run_with_its_name(
    trouble: Any, said: str, path: str, make_stub: Any, tmp_path: Path, seconds: float
) -> None:
    stub, folder = make_stub(), tmp_path / str(seconds)
    trainer = run(stub, folder, seconds if trouble is stall else STALL)
    healthy = stub.answer

    def answer(handler: Any, body: dict[str, Any]) -> None:
        failing = handler.path == path and trainer.state.global_step == 1
        trouble(stub, handler) if failing else healthy(handler, body)

    stub.answer = answer
    with pytest.raises(RolloutError, match=said):
        trainer.train()
    newest, skipped = newest_valid(folder)
    assert newest is not None and newest.name == "checkpoint-1" and not skipped
    if trouble is not die:
        stub.answer = healthy
        again = run(stub, folder)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 3
