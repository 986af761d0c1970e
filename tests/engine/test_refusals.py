"""What could not learn is refused at construction, in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from accelerate import DistributedType
from tests.support.processes import run_ranks
from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration

from strop.engine.refusals import check_launch
from strop.errors import ConfigError, SetupError
from strop.methods.dpo import DPOConfig
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

VOCAB = len(toy_tokenizer("plain"))


def language_model() -> Any:
    return tiny_model("llama", dtype=torch.float32, vocab_size=VOCAB)


def adapted(**options: Any) -> Any:
    return peft.get_peft_model(language_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], **options))


@pytest.mark.parametrize(
    ("optim", "package"), [("galore_adamw", "galore_torch"), ("grokadamw", "grokadamw"), ("adamw_torch_xla", "xla")]
)
def test_an_optimizer_without_its_package(optim: str, package: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=rf"optim='{optim}' needs a package that is not installed.*{package}"):
        make_trainer("sft", tmp_path, optim=optim)


def test_an_optimizer_with_its_package_is_not(tmp_path: Path) -> None:
    make_trainer("sft", tmp_path, optim="adafactor")


def test_a_merged_adapter(tmp_path: Path) -> None:
    model = adapted(init_lora_weights=False)
    model.merge_adapter()
    with pytest.raises(ConfigError, match="merged into the weights"):
        make_trainer("sft", tmp_path, model=model)
    model.unmerge_adapter()
    make_trainer("sft", tmp_path, model=model)


def test_a_peft_model_whose_layers_were_taken_off(tmp_path: Path) -> None:
    model = adapted()
    plain = model.merge_and_unload()
    with pytest.raises(ConfigError, match="no adapter layers any more"):
        make_trainer("dpo", tmp_path, model=model)
    with pytest.raises(ConfigError, match="is frozen, so nothing would learn"):  # PEFT froze it
        make_trainer("dpo", tmp_path, model=plain).train()


def test_a_frozen_adapter_is_evaluated_and_not_trained(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, model=adapted(inference_mode=True), eval_rows=None)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        trainer.train()


def test_quantised_weights_without_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    language_model().save_pretrained(tmp_path / "model")
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    with pytest.raises(ConfigError, match="quantised and cannot move"):
        make_trainer("sft", tmp_path, model=str(tmp_path / "model"), trainer=quantised)


@pytest.mark.parametrize("verb", ["sft", "reward"])
def test_encoder_decoders(verb: str, tmp_path: Path) -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, d_model=16, d_ff=16, num_layers=1, num_heads=2))
    model.save_pretrained(tmp_path / "t5")
    for source in (model, str(tmp_path / "t5")):
        with pytest.raises(SetupError, match="is an encoder-decoder"):
            make_trainer(verb, tmp_path, model=source)


def launched(kind: DistributedType, world_size: int, **asked: Any) -> SimpleNamespace:
    state = SimpleNamespace(distributed_type=kind)
    given: dict[str, Any] = {"output_dir": "out", "deepspeed": None, "fsdp": "", **asked}
    return SimpleNamespace(distributed_state=state, world_size=world_size, **given)


def refusal_of_a_rank(folder: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make_trainer("sft", folder, use_cpu=False)
    return str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the processes are joined")
def test_processes_that_nothing_joins(tmp_path: Path) -> None:
    for text in run_ranks(refusal_of_a_rank, 2, tmp_path / "ranks", str(tmp_path)):
        assert "2 processes, each of them by itself, would train in" in text and "use_cpu=True" in text


@pytest.mark.parametrize("asked", [{"fsdp": "full_shard"}, {"environment": "ACCELERATE_USE_FSDP"}])
def test_fsdp_on_cpus(asked: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    if name := asked.pop("environment", None):
        monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match="plain DDP, with the whole model in every process, would run"):
        check_launch(launched(DistributedType.MULTI_CPU, 2, **asked))
    with pytest.raises(ConfigError, match="one process, with the whole model, would run"):
        check_launch(launched(DistributedType.NO, 1, **asked))
    check_launch(launched(DistributedType.FSDP, 2, **asked))


def test_deepspeed_that_was_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"plain DDP.*DS_ACCELERATOR=cpu"):
        check_launch(launched(DistributedType.MULTI_CPU, 2, deepspeed="zero3.json"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="no use_cpu, which turns it off"):
        check_launch(launched(DistributedType.NO, 1))
    check_launch(launched(DistributedType.DEEPSPEED, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes, each of them by itself, would run"):
        check_launch(launched(DistributedType.DEEPSPEED, 1, deepspeed="zero3.json"))


@pytest.mark.parametrize(("verb", "task", "labels"), [("reward", "score", 2), ("prm", "step", 3)])
def test_a_head_of_another_size_is_refused(verb: str, task: str, labels: int, tmp_path: Path) -> None:
    model = tiny_model("llama", task=task, vocab_size=288, num_labels=labels)
    with pytest.raises(ConfigError, match=rf"{labels} labels.*num_labels="):
        make_trainer(verb, tmp_path, model=model)


def test_the_best_of_several_sets_is_chosen_by_the_metric_of_one(tmp_path: Path) -> None:
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    sets = {"a": rows_for("dpo", 2), "b": rows_for("dpo", 2)}
    with pytest.raises(ConfigError, match="Set 'eval_a_loss' or 'eval_b_loss'"):
        make_trainer("dpo", tmp_path, eval_rows=sets, **options)
    make_trainer("dpo", tmp_path, eval_rows=sets, metric_for_best_model="b_loss", **options)


def test_what_asks_for_nothing_is_taken(tmp_path: Path) -> None:
    DPOConfig(output_dir=str(tmp_path), use_cpu=True, ref_model_init_kwargs=None, tools=None, use_logits_to_keep=False)
