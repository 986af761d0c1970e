import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from strop.demo import run as demo_run
from strop.demo.model import build_model, build_tokenizer
from strop.demo.sampling import best_by_reward, sampler_of
from strop.demo.words import held_out_words


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo_run.run_demo(folder, seed=0, fast=True)


def test_summary_says_before_and_after(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"metric", "before", "after", "seconds"} <= set(summary)
    assert 0 <= summary["before"] <= 1 and 0 <= summary["after"] <= 1 and summary["seconds"] > 0
    assert summary["fast"] is True and "by design" in summary["note"] and "teaches next to nothing" in summary["note"]
    assert set(summary["stage_seconds"]) == {"sft", "sampling", "reward", "dpo"}


def test_all_three_models_are_saved_and_differ(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    weight = "model.layers.0.mlp.up_proj.weight"
    sft = AutoModelForCausalLM.from_pretrained(folder / "sft").state_dict()[weight]
    dpo = AutoModelForCausalLM.from_pretrained(folder / "dpo").state_dict()[weight]
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward").state_dict()[weight]
    start = build_model(build_tokenizer(), seed=0).state_dict()[weight]
    assert len({float(w.float().norm()) for w in (start, sft, dpo, reward)}) == 4


def test_the_report_shows_all_stages(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    order = [page.index(f'"name":"{name}","method"') for name in ("sft", "reward", "dpo")]
    assert order == sorted(order)
    for expected in ("Held-out words", held_out_words(1)[0], "rewards/margins", "accuracy"):
        assert expected in page


@pytest.mark.parametrize("plan", [demo_run.FAST, demo_run.Schedule()])
def test_training_never_sees_a_held_out_word(plan: demo_run.Schedule) -> None:
    sampled = demo_run.train_words()[: plan.prompts]
    assert len(sampled) == plan.prompts and not set(sampled) & set(held_out_words())


def test_samplers_are_reproducible_and_greedy_at_zero() -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0)
    prompts = ["stone backward:", "ox backward:"]
    first = sampler_of(model, tokenizer, seed=3)(prompts, 3)
    assert first == sampler_of(model, tokenizer, seed=3)(prompts, 3)
    assert first != sampler_of(model, tokenizer, seed=4)(prompts, 3)
    greedy = sampler_of(model, tokenizer, temperature=0.0)(prompts, 2)
    assert all(a == b for a, b in greedy)
    ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        top = int(model(ids).logits[0, -1].argmax())
    assert greedy[0][0].startswith(tokenizer.decode([top]).replace("</s>", ""))


def test_best_by_reward_takes_the_highest_score() -> None:
    tokenizer = build_tokenizer()
    base = build_model(tokenizer, seed=0)
    config = base.config
    config.num_labels = 1
    judge = AutoModelForSequenceClassification.from_config(config).eval()
    prompts, samples = ["stone backward:", "river backward:"], [[" enots", " stone", " x"], [" revir", " river", " yy"]]

    def scored(prompt: str, text: str) -> float:
        ids = tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            return float(judge(torch.tensor([ids])).logits[0, 0])

    expected = [max(texts, key=lambda t, p=p: scored(p, t)) for p, texts in zip(prompts, samples, strict=True)]
    with torch.no_grad():
        assert best_by_reward(judge, tokenizer, prompts, samples) == expected
