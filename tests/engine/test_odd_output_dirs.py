"""An output_dir that cannot be written, is a link, or goes away during the run: a sentence, or the run survives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.crash import tiny_run
from transformers import TrainerCallback

from strop.engine.checkpoint import newest_valid
from strop.errors import SetupError

READ_ONLY = Path("/sys/kernel")
"""Where nobody can write, root included."""


class Remover(TrainerCallback):
    """Removes the folder of the run after its second step, as somebody who tidies up."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            shutil.rmtree(args.output_dir)


@pytest.mark.skipif(not READ_ONLY.is_dir(), reason="Linux has it")
@pytest.mark.parametrize("folder", [READ_ONLY, READ_ONLY / "run"], ids=["there", "new"])
def test_a_folder_that_is_read_only_is_named_before_a_step(folder: Path) -> None:
    with pytest.raises(SetupError, match=rf"{folder} cannot be written: .*Choose another folder"):
        tiny_run(str(folder)).train()


@pytest.mark.parametrize("saved", ["steps", "no"])
def test_a_folder_that_is_removed_during_the_run_is_made_again(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trainer = tiny_run(str(folder), epochs=2, save_strategy=saved)
    trainer.add_callback(Remover())
    assert trainer.train().global_step == 4
    trainer.save_model()
    assert (folder / "model.safetensors").is_file() and '"step": 4' in (folder / "metrics.jsonl").read_text()
    newest, passed_over = newest_valid(folder)
    assert not passed_over and (newest.name if newest else "none") == ("checkpoint-4" if saved == "steps" else "none")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tiny_run(str(tmp_path / "link"), epochs=1).train()
    assert newest_valid(tmp_path / "real")[0] == tmp_path / "real" / "checkpoint-2"
    tiny_run(str(tmp_path / "link"), epochs=2).train(resume_from_checkpoint=True)
    assert newest_valid(tmp_path / "real")[0] == tmp_path / "real" / "checkpoint-4"
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    with pytest.raises(SetupError, match="nowhere cannot be written"):
        tiny_run(str(tmp_path / "nowhere")).train()
