"""The callbacks that scripts give to a trainer, in runs: what they write, count, average and show."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, TrainerCallback

from strop.errors import ConfigError
from strop.rewards import Judge
from strop.scripts.averaging import BEMACallback
from strop.scripts.completions import LogCompletionsCallback, WinRateCallback, send_table
from strop.scripts.progress import RichProgressCallback
from strop.testing.cases import make_trainer, rows_for

FAST = {"learning_rate": 0.05, "logging_steps": 1}


def trainer_for(folder: Path, rows: int = 3, steps: int = 2, **settings: Any) -> Any:
    """A DPO run with evaluation prompts."""
    given = {name: settings.pop(name) for name in ("callbacks", "peft_config") if name in settings}
    evaluated = Dataset.from_list(rows_for("dpo", rows))
    return make_trainer(
        "dpo", folder, max_steps=steps, eval_rows=evaluated, trainer=given, dtype=torch.float32, **{**FAST, **settings}
    )


def samples(trainer: Any) -> list[dict[str, Any]]:
    file = Path(trainer.args.output_dir) / "samples.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def greedy(trainer: Any, index: int, tokens: int) -> str:
    """What transformers' own greedy decoding writes after an evaluation prompt."""
    ids = torch.tensor([trainer.eval_dataset[index].prompt_ids])
    out = trainer.model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    return trainer.processing_class.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_completions_are_logged_every_few_steps(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, steps=4)
    trainer.add_callback(LogCompletionsCallback(trainer, GenerationConfig(max_new_tokens=5), num_prompts=2, freq=2))
    trainer.train()
    rows = samples(trainer)
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert [row["completion"] for row in rows[2:]] == [greedy(trainer, i, 5) for i in range(2)]


def test_completions_follow_the_generation_config_and_eval_steps(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, steps=2, eval_strategy="steps", eval_steps=1, learning_rate=0.0)
    drawn = GenerationConfig(max_new_tokens=30, do_sample=True, temperature=5.0, eos_token_id=None)
    callback = LogCompletionsCallback(trainer, drawn)
    trainer.add_callback(callback)
    trainer.train()
    assert [row["step"] for row in samples(trainer)] == [1, 1, 1, 2, 2, 2]
    assert callback.rows[0][2] != greedy(trainer, 0, 30) and callback.rows[0][0] == "1"


def test_prompts_are_needed(tmp_path: Path) -> None:
    trainer = make_trainer("dpo", tmp_path)
    with pytest.raises(ConfigError, match="eval_dataset="):
        LogCompletionsCallback(trainer)


def test_tables_go_to_the_trackers_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    wandb = SimpleNamespace(log=sent.append, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    send_table(["tensorboard"], ["step"], [["1"]])
    assert sent == []
    send_table(["wandb"], ["step"], [["1"]])
    assert sent == [{"completions": (["step"], [["1"]])}]


class Second:
    """A judge of TRL's kind: the second wins for the first prompt, no verdict for the others."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def judge(self, prompts: list[str], completions: list[list[str]], shuffle_order: bool) -> list[int]:
        self.asked.append((prompts, completions, shuffle_order))
        return [1, *[-1] * (len(prompts) - 1)]


def test_win_rate_compares_with_the_start_of_training(tmp_path: Path) -> None:
    trainer, judge = trainer_for(tmp_path, steps=1, eval_strategy="steps", eval_steps=1), Second()
    before = [greedy(trainer, i, 6) for i in range(3)]
    trainer.add_callback(WinRateCallback(judge, trainer, GenerationConfig(max_new_tokens=6), shuffle_order=False))
    trainer.train()
    ((prompts, completions, shuffled),) = judge.asked
    after = [greedy(trainer, i, 6) for i in range(3)]
    assert before != after and completions == [list(pair) for pair in zip(before, after, strict=True)]
    assert prompts[0] == trainer.processing_class.decode(trainer.eval_dataset[0].prompt_ids) and not shuffled
    rates = [entry["eval_win_rate"] for entry in trainer.state.log_history if "eval_win_rate" in entry]
    assert rates == [pytest.approx((1 + 0.5 + 0.5) / 3)]


class Chances(Judge):
    """P(the first wins) of three pairs."""

    def judge_pairs(self, prompts: list[str], pairs: list[tuple[str, str]]) -> list[float | None]:
        return [0.1, 0.7, None]


@pytest.mark.parametrize(("soft", "expected"), [(False, (1 + 0 + 0.5) / 3), (True, (0.9 + 0.3 + 0.5) / 3)])
def test_win_rate_of_a_judge_with_probabilities(soft: bool, expected: float, tmp_path: Path) -> None:
    callback = WinRateCallback(Chances(), trainer_for(tmp_path), use_soft_judge=soft)
    assert callback.win_rate(["p", "q", "r"], [("a", "b"), ("c", "d"), ("e", "f")]) == pytest.approx(expected)
    with pytest.raises(ConfigError, match="without use_soft_judge"):
        WinRateCallback(Second(), callback.trainer, use_soft_judge=True)


class Weights(TrainerCallback):
    """The weights after every step."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, {}

    def keep(self, state: Any, model: Any) -> None:
        self.seen[state.global_step] = dict(model.named_parameters())[self.name].detach().double().clone()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.keep(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.keep(state, model)


@pytest.mark.parametrize("after", [0, 1])
def test_the_average_follows_the_formula(after: int, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weights = Weights(name)
    average = BEMACallback(update_freq=2, ema_power=0.7, bias_power=0.3, lag=3, update_after=after, multiplier=2.0)
    trainer = trainer_for(tmp_path, steps=4, callbacks=[weights, average])
    trainer.train()
    theta = weights.seen
    start = ema = theta[after]
    saved = start
    for step in range(after + 2, 5, 2):
        moment = 3 + 2.0 * step
        ema = (1 - moment**-0.7) * ema + moment**-0.7 * theta[step]
        saved = ema + moment**-0.3 * (theta[step] - start)
    kept = load_file(tmp_path / "bema" / "model.safetensors")[name].double()
    assert torch.allclose(kept, saved, atol=1e-6) and not torch.allclose(kept, theta[4], atol=1e-4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "bema").config.model_type == "llama"


def test_of_an_adapter_the_adapter_is_averaged(tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = trainer_for(
        tmp_path, peft_config=adapter, callbacks=[BEMACallback(update_freq=1, min_ema_multiplier=1.0)]
    )
    trainer.train()
    kept = load_file(tmp_path / "bema" / "adapter_model.safetensors")
    now = {key: weight for key, weight in trainer.model.state_dict().items() if "lora_B" in key}
    moved = kept["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert set(kept) == {key.replace(".default", "") for key in trainer.model.state_dict() if "lora_" in key}
    # The average is the weights themselves (beta 1), and they began at 0: saved = theta + alpha theta.
    theta = now["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    assert torch.allclose(moved, (1 + 12**-0.2) * theta, atol=1e-6) and theta.abs().max() > 0


def test_rich_progress_shows_every_number_in_place_of_the_own_display(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shown = io.StringIO()
    display = RichProgressCallback(Console(file=shown, width=200))
    trainer = trainer_for(
        tmp_path, rows=2, callbacks=[display], disable_tqdm=False, eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    text = shown.getvalue()
    assert "step 1 of 2" in text and "step 2 of 2" in text
    names = {name for entry in trainer.state.log_history for name in entry} - {"step"}
    assert all(name.rpartition("/")[2] in text for name in names), text
    assert "dpo 1/2" not in capsys.readouterr().out
