from pathlib import Path

import pytest
import yaml
from peft import LoraConfig

from strop.testing.cases import make_trainer
from strop.watch.model_card import write_card

PARTS = (
    "# my-run", "strop's DPOTrainer", "AutoPeftModelForCausalLM", "| learning_rate | `0.001` |", "rank 4", "`loss`",
    "`rewards/margins`", "at step 1", "torch 2.", "arxiv.org/abs/2305.18290", "@software{strop",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    adapter = LoraConfig(r=4, target_modules=["q_proj"])
    trainer = make_trainer("dpo", folder, max_steps=1, trainer={"peft_config": adapter})
    trainer.train()
    trainer.save_model()
    return folder


def test_the_card_of_a_saved_model_is_filled_in(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "peft", "tags": ["strop", "dpo"]}
    for part in PARTS:
        assert part in card, part
    assert "More Information Needed" not in card


def test_a_card_that_somebody_wrote_stays(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My own words.")
    write_card(tmp_path, (saved / "README.md").read_text())
    assert (tmp_path / "README.md").read_text() == "My own words."
