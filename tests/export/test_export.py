"""What is exported scores elsewhere as it did here: merged adapters, tied heads, GGUF read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from strop.cli import main
from strop.errors import ConfigError
from strop.export import merged, write_gguf
from strop.export.modelfile import modelfile
from strop.model import with_head
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

IDS = torch.tensor([[5, 9, 3, 12, 7, 20, 31]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def adapted(targets: list[str], *, tied: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    size = len(toy_tokenizer())
    base = tiny_model("llama", dtype=torch.float32, vocab_size=size, tie_word_embeddings=tied)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options))
    return model.eval()


@pytest.mark.parametrize(
    ("targets", "tied"),
    [
        (["q_proj", "down_proj"], False),
        (["q_proj"], True),
        (["q_proj", "lm_head"], True),
        (["embed_tokens"], True),
        (["embed_tokens", "lm_head"], False),
    ],
)
def test_a_merged_adapter_scores_as_before_and_after_saving(targets: list[str], tied: bool, tmp_path: Path) -> None:
    model = adapted(targets, tied=tied)
    before = logits(model)
    whole = merged(model)
    torch.testing.assert_close(logits(whole), before, rtol=1e-4, atol=1e-4)
    whole.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), before, rtol=1e-4, atol=1e-4)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run's folder: an adapter whose base lies beside it."""
    model = adapted(["q_proj", "v_proj"])
    base, folder = tmp_path / "base", tmp_path / "run"
    model.unload().save_pretrained(base)
    toy_tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(fresh, config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def test_the_command_leaves_the_run_alone_and_writes_what_transformers_loads(trained: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    target = tmp_path / "out"
    assert main(["export", str(trained), "--to", str(target), "--gguf", "f16"]) == 0
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    from strop.model import load_model

    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(target)), logits(load_model(str(trained))), rtol=1e-4, atol=1e-4
    )
    assert (target / "gguf" / "model-f16.gguf").is_file() and (target / "gguf" / "Modelfile").is_file()
    assert main(["export", str(trained), "--to", str(target)]) == 2  # not empty


BOUNDS = {"f32": 1e-4, "f16": 2e-2, "bf16": 2e-1, "q8_0": 2e-1, "q4_0": 4.0}


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_read_by_transformers_scores_the_same(arch: str, kind: str, tmp_path: Path) -> None:
    sizes = {"head_dim": 128} if arch == "qwen3" else {}  # transformers' reader of GGUF takes no other there
    model = tiny_model(arch, dtype=torch.float32, vocab_size=len(toy_tokenizer()), intermediate_size=64, **sizes)
    path = write_gguf(model, toy_tokenizer(), tmp_path / "model.gguf", kind)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    difference = (logits(loaded).log_softmax(-1) - logits(model).log_softmax(-1)).abs().mean()
    assert difference < BOUNDS[kind]


def test_rows_that_no_blocks_fill_are_kept_as_halves(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=len(toy_tokenizer()), hidden_size=32, intermediate_size=48)
    write_gguf(model, toy_tokenizer(), tmp_path / "m.gguf", "q8_0")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(read), logits(model), rtol=0, atol=BOUNDS["q8_0"])


def test_the_tokenizer_in_a_gguf_file_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    model = tiny_model("qwen2", dtype=torch.float32, vocab_size=len(tokenizer))
    write_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("ant bee cat", "hello  world\n", "ünï"):
        assert read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert read.chat_template == tokenizer.chat_template and read.eos_token == tokenizer.eos_token


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"(?s)q4_k_m.*llama-quantize.*gpt2"):
        write_gguf(model, toy_tokenizer(), tmp_path / "m.gguf", "q4_k_m")


def test_an_export_that_fails_leaves_nothing_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is a sentence, whatever library meets it; the folder can be named again."""
    target = tmp_path / "out"
    save = PreTrainedModel.save_pretrained

    def full(self: Any, folder: Any, **options: Any) -> None:
        save(self, folder, **options)
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        assert main(["export", str(trained), "--to", str(target)]) == 2
    said = capsys.readouterr().err
    assert "cannot be written: I/O error: No space left on device" in said and "nothing is left" in said
    assert not list(target.iterdir())
    assert main(["export", str(trained), "--to", str(target)]) == 0


def test_a_model_that_gguf_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    tiny_model("gpt2", dtype=torch.float32, vocab_size=len(toy_tokenizer())).save_pretrained(source)
    toy_tokenizer().save_pretrained(source)
    assert main(["export", str(source), "--to", str(target), "--gguf", "q8_0"]) == 2
    shown = capsys.readouterr()
    assert "architecture 'gpt2'" in shown.err and "model  " not in shown.out and not list(target.iterdir())


def test_a_modelfile_names_the_weights_and_the_ends(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer()
    text = modelfile(tmp_path / "model-q8_0.gguf", tokenizer)
    assert text.startswith("FROM ./model-q8_0.gguf\n") and f'PARAMETER stop "{tokenizer.eos_token}"' in text


@pytest.mark.parametrize(("task", "kind"), [("score", "SEQ_CLS"), ("step", "TOKEN_CLS")])
@pytest.mark.parametrize("adapter", [True, False])
def test_a_head_for_scores_stays_one(task: str, kind: str, adapter: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = with_head(tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer())), task)
    model.save_pretrained(tmp_path / "base")
    if adapter:
        model = type(model).from_pretrained(tmp_path / "base")
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type=kind)
        model = get_peft_model(model, config)
        with torch.no_grad():
            model.base_model.model.score.weight.add_(1.0)
    model.save_pretrained(tmp_path / "run")
    toy_tokenizer().save_pretrained(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 0
    again = type(model.get_base_model() if adapter else model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no language-model head"):
        write_gguf(again, toy_tokenizer(), tmp_path / "x.gguf")
