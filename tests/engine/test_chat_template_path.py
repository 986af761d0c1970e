"""The chat template of another tokenizer brings the tokens that it is written in, and the models get room for them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.support.tokenizers import toy_tokenizer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from strop.engine import parts
from strop.errors import ConfigError
from strop.export.merge import merged
from strop.model import apply_peft, load_model
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

TURN_END, TURN_BEGIN = "<|im_end|>", "<|im_start|>"
CHATS = [
    {"prompt": [{"role": "user", "content": "the ant"}], "completion": [{"role": "assistant", "content": word}]}
    for word in ("good", "bad bee", "cat", "the dog")
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": [{"role": "assistant", "content": "no"}]}
    for row in CHATS
]


def base_tokenizer() -> Any:
    """A tokenizer without the tokens of ChatML, whose ids are those of its vocabulary without a gap."""
    saved = json.loads(toy_tokenizer("plain").backend_tokenizer.to_str())
    lacking = {TURN_BEGIN, TURN_END}
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in lacking]
    words = sorted((word for word in saved["model"]["vocab"] if word not in lacking), key=saved["model"]["vocab"].get)
    saved["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    for token in saved["added_tokens"]:
        token["id"] = saved["model"]["vocab"][token["content"]]
    backend = Tokenizer.from_str(json.dumps(saved))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", bos_token="<s>")


def base_model(tokenizer: Any, **options: Any) -> Any:
    return tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer), **options)


@pytest.fixture
def chatml(tmp_path: Path) -> str:
    toy_tokenizer("chatml").save_pretrained(tmp_path / "chatml")
    return str(tmp_path / "chatml")


def test_tokens_and_end_of_turn_come_with_the_template(
    chatml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = base_tokenizer()
    size = len(tokenizer)
    trainer = make_trainer(
        "sft", tmp_path, rows=CHATS, tokenizer=tokenizer, model=base_model(tokenizer), chat_template_path=chatml
    )
    assert f"brings 2 tokens with its chat template: {TURN_BEGIN} {TURN_END}" in capsys.readouterr().out
    assert tokenizer.eos_token == TURN_END and len(tokenizer) == size + 2
    assert trainer.model.get_input_embeddings().num_embeddings == size + 2
    completion = trainer.train_dataset[0].completions[0]
    assert tokenizer.convert_ids_to_tokens(completion)[-1] == TURN_END and len(completion) == 2
    rows = trainer.model.get_input_embeddings().weight
    before = rows[size:].detach().clone()
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert (rows[size:] != before).any(1).all()
    saved, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert saved.config.eos_token_id == again.eos_token_id == completion[-1]
    assert torch.equal(saved.get_input_embeddings().weight, rows)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_trains_the_rows_of_new_tokens(tied: bool, chatml: str, tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base_model(tokenizer, tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        "dpo", tmp_path, rows=PAIRS, tokenizer=tokenizer, model=str(tmp_path / "base"),
        trainer={"peft_config": lora}, chat_template_path=chatml, learning_rate=0.1, num_train_epochs=2,
    )  # fmt: skip
    beside = {n: p for n, p in trainer.policy.named_parameters() if p.requires_grad and "lora" not in n}
    assert [name.split(".")[-2] for name in beside] == ["trainable_tokens_delta"] + ([] if tied else ["default"])
    before = {name: weight.detach().clone() for name, weight in beside.items()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert all(not torch.equal(weight, before[name]) for name, weight in beside.items())
    assert lora.trainable_token_indices is None  # the script's own config is left as it was
    trainer.save_model(str(tmp_path / "out"))
    ids = torch.tensor([[5, len(tokenizer) - 1, 30, len(tokenizer) - 2]])
    with torch.no_grad():
        expected = trainer.policy.eval()(ids).logits
        assert torch.equal(load_model(tmp_path / "out", dtype=torch.float32)(ids).logits, expected)
        assert torch.allclose(merged(tmp_path / "out")(ids).logits, expected, atol=1e-4)


def test_what_config_and_model_say_is_kept(chatml: str, tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    options = {"rows": PAIRS, "tokenizer": tokenizer, "chat_template_path": chatml, "eos_token": "</s>"}
    given = {"ref_model": base_model(tokenizer, seed=1)}
    trainer = make_trainer("dpo", tmp_path, model=base_model(tokenizer), trainer=given, **options)
    assert tokenizer.eos_token == "</s>"
    assert trainer.ref_model.get_input_embeddings().num_embeddings == len(tokenizer)
    trainer.train()


def test_what_cannot_be_taken_is_refused(chatml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = base_tokenizer()
    adapter = apply_peft(base_model(tokenizer), {"r": 2, "target_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match="cannot grow beneath an adapter"):
        make_trainer("sft", tmp_path, rows=CHATS, tokenizer=tokenizer, model=adapter, chat_template_path=chatml)
    with pytest.raises(ConfigError, match="'org/name' is neither a jinja file nor a tokenizer"):
        make_trainer("sft", tmp_path, rows=CHATS, chat_template_path="org/name")
    toy_tokenizer("plain").save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="has no chat template"):
        make_trainer("sft", tmp_path, rows=CHATS, chat_template_path=str(tmp_path / "plain"))
    monkeypatch.setattr(parts, "load_tokenizer", lambda source, **_: toy_tokenizer("chatml"))
    trainer = make_trainer("sft", tmp_path, rows=CHATS, chat_template_path="org/name")
    assert trainer.processing_class.chat_template == toy_tokenizer("chatml").chat_template


def test_a_model_that_is_made_late_says_what_ends_its_texts(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("chatml_other_eos")

    def made() -> Any:
        model = base_model(tokenizer)
        model.generation_config.eos_token_id = [2, 4]
        return model

    trainer = make_trainer(
        "sft", tmp_path, rows=CHATS, tokenizer=tokenizer, trainer={"model_init": made}, trainer_class=without_model
    )
    completion = trainer.train_dataset[0].completions[0]
    assert tokenizer.convert_ids_to_tokens(completion)[-1] == TURN_END


def without_model(model: Any, **arguments: Any) -> Any:
    from strop import SFTTrainer

    return SFTTrainer(**arguments)
