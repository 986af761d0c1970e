"""What the model saw is saved with it: rendered again with what was saved, rows are the same ids, answers the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from strop.data import DatasetKind, prepare
from strop.rollout import SamplingParams, make_generator
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import CHATML, toy_tokenizer

ROWS = [
    {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
    for q, a in [("the ant", "good ant"), ("bee and cat", "bad"), ("dog", "the good dog saw the bee"), ("old", "word")]
]
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
FURTHER_STOP = 70


def trained(folder: Path, **options: Any) -> Any:
    """A model trained on conversations rendered by a template of the run's own, not the tokenizer's."""
    template = folder / "template.jinja"
    template.write_text(CHATML.replace("You are a helper.", "Be short."))
    tokenizer = toy_tokenizer("chatml")
    if "model" not in options:
        options["model"] = tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    options["model"].generation_config.eos_token_id = [tokenizer.eos_token_id, FURTHER_STOP]
    trainer = make_trainer(
        "sft",
        folder / "run",
        rows=ROWS,
        tokenizer=tokenizer,
        chat_template_path=str(template),
        learning_rate=1e-2,
        num_train_epochs=2,
        **options,
    )
    trainer.train()
    trainer.save_model(str(folder / "out"))
    return trainer


def adapter_on_a_saved_base(folder: Path) -> Any:
    base = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer("chatml")))
    base.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return PeftModel(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_rows_and_answers_are_the_same_with_what_was_saved(kind: str, tmp_path: Path) -> None:
    options = {"model": adapter_on_a_saved_base(tmp_path)} if kind == "adapter" else {}
    trainer = trained(tmp_path, **options)
    seen = [trainer.train_dataset[i] for i in range(len(ROWS))]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    again = prepare(ROWS, DatasetKind.PROMPT_COMPLETION, tokenizer)
    for row, example in enumerate(seen):
        assert (again[row].prompt_ids, again[row].completions) == (example.prompt_ids, example.completions)
        assert again[row].loss_mask == example.loss_mask
    loader = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path / "out").eval()
    prompts = [example.prompt_ids for example in seen]
    mine = make_generator("auto", model=trainer.policy, tokenizer=trainer.processing_class)
    theirs = make_generator("auto", model=model, tokenizer=tokenizer)
    first, second = (engine.generate(prompts, 1, GREEDY) for engine in (mine, theirs))
    assert first.completions == second.completions and first.finish_reasons == second.finish_reasons


def test_every_stop_id_is_saved(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert saved.eos_token_id == [trainer.processing_class.eos_token_id, FURTHER_STOP]


def test_the_rendered_row_of_a_run_is_the_row_that_was_trained_on(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    (report,) = json.loads((tmp_path / "run" / "data.json").read_text()).values()
    example, sample = trainer.train_dataset[0], report["sample"]
    prompt, answer = sample["parts"]
    assert (sample["row"], prompt["ids"], answer["ids"]) == (0, example.prompt_ids, example.completions[0])
    assert "Be short." in "".join(prompt["tokens"]) and "".join(answer["tokens"]) == "good ant<|im_end|>"
    assert not any(prompt["mask"]) and all(answer["mask"])


def test_a_tokenizer_that_was_loaded_with_a_models_keywords_is_saved(tmp_path: Path) -> None:
    toy_tokenizer("plain").save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", dtype=torch.float32)
    make_trainer("dpo", tmp_path, tokenizer=tokenizer).save_model(str(tmp_path / "saved"))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(tokenizer)
