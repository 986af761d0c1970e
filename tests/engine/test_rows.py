"""What an engine hands to the preparation of rows: facts of the model, names of sets, streams of every method."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.support.tokenizers import toy_tokenizer

import strop
from strop.data import RowStream
from strop.engine.rows import is_prepared, model_facts
from strop.errors import ConfigError, DataError
from strop.model import apply_peft, load_model
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

CHAT = [
    {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "good"}]}
    for i in range(4)
]


@pytest.mark.parametrize("by_path", [False, True])
def test_the_turn_end_of_a_generation_config_ends_a_completion(tmp_path, by_path):
    """Llama 3 ends turns in a token that is not the tokenizer's EOS; nothing after it is learned."""
    tokenizer = toy_tokenizer("chatml_other_eos")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = tiny_model("llama", vocab_size=288)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end, 70]  # 70: a word of this tokenizer
    if by_path:
        model.save_pretrained(tmp_path / "model")
        assert model_facts(tmp_path / "model", tokenizer) == model_facts(model, tokenizer)
        return
    trainer = make_trainer("sft", tmp_path, model=model, rows=CHAT, tokenizer=tokenizer)
    assert [example.completions[0][-1] for example in trainer.train_dataset] == [end] * 4
    assert "no_stop" not in trainer.reports["train"].flags
    assert 70 not in trainer.train_dataset.builder.encoder.stops


def test_an_adapters_folder_ends_texts_as_its_base_does(tmp_path):
    """It holds neither a config nor a generation config of its own; rows are prepared before anything is loaded."""
    tokenizer = toy_tokenizer("chatml_other_eos")
    base = tiny_model("gpt2", vocab_size=288, max_position_embeddings=64)
    base.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    base.save_pretrained(tmp_path / "base")
    adapted = load_model(tmp_path / "base")
    apply_peft(adapted, {"r": 2, "target_modules": ["c_attn"]}).save_pretrained(tmp_path / "adapter")
    facts = model_facts(tmp_path / "adapter", tokenizer)
    assert facts == model_facts(base, tokenizer) and len(facts["stop_token_ids"]) == 2
    assert facts["learned_positions"] == 64
    (tmp_path / "base").rename(tmp_path / "gone")
    assert model_facts(tmp_path / "adapter", tokenizer) == {"stop_token_ids": (), "learned_positions": None}


def test_batches_of_a_dataloader_of_ones_own_are_named(tmp_path):
    class Mine(strop.SFTTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader([{"input_ids": [1, 2]}] * 4, batch_size=2)

    with pytest.raises(ConfigError, match=r"A batch holds a dict where prepared rows are wanted"):
        make_trainer("sft", tmp_path, trainer_class=Mine, max_steps=1).train()


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_row_longer_than_the_learned_positions_is_named(tmp_path, method):
    model = tiny_model("gpt2", vocab_size=288, max_position_embeddings=32)
    rows = rows_for(method, 4)
    column = "text" if "text" in rows[2] else "prompt"
    rows[2] = {**rows[2], column: "the good ant " * 20}
    limits = {"max_completion_length": 4} if method == "grpo" else {}
    with pytest.raises(DataError, match=r"row 2: longer than the positions that the model has learned: \d+ tokens"):
        make_trainer(method, tmp_path, model=model, rows=rows, max_length=None, **limits)


def test_relative_positions_have_no_end():
    assert model_facts(tiny_model("llama", vocab_size=288), toy_tokenizer())["learned_positions"] is None
    assert model_facts("no/such-model", toy_tokenizer()) == {"stop_token_ids": (), "learned_positions": None}


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "", 3])
def test_names_of_evaluation_sets_that_cannot_be_printed(tmp_path, name):
    with pytest.raises(ConfigError, match="a name is text that can be printed"):
        make_trainer("sft", tmp_path, eval_rows={name: rows_for("sft", 2)})


def test_the_name_of_an_evaluation_set_is_no_path(tmp_path):
    cache = tmp_path / "deep" / "cache"
    trainer = make_trainer(
        "sft", tmp_path / "out", eval_rows={"x/../../../y": rows_for("sft", 2)}, dataset_cache_dir=str(cache)
    )
    assert len(trainer.eval_dataset["x/../../../y"]) == 2
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cache"]


@pytest.mark.parametrize("method", ["kto", "bco"])
def test_a_stream_of_labelled_rows(tmp_path, method):
    endless = RowStream(lambda: itertools.cycle(rows_for(method, 4)))
    trainer = make_trainer(method, tmp_path, rows=endless, max_steps=1)
    assert is_prepared(trainer.train_dataset)
    trainer.train()
    assert trainer.state.global_step == 1


def test_columns_say_what_the_prompt_is_and_leaks_are_said(tmp_path):
    rows = [{"ask": f"ant {i}", "more": "bee", "better": " good", "worse": " bad"} for i in range(4)]
    mapping = "prompt=ask+more,chosen=better,rejected=worse"
    trainer = make_trainer("dpo", tmp_path, rows=rows, eval_rows=rows, columns=mapping)
    assert trainer.processing_class.decode(trainer.train_dataset[1].prompt_ids) == "ant 1\n\nbee"
    assert any("are the training rows" in finding.message for finding in trainer.reports["eval"].findings)
