"""Models and tokenizers from every kind of source, and one clear sentence for every kind of failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tests.support.random_trees import random_examples
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from strop.errors import ConfigError, SetupError
from strop.model import apply_peft, load_model, load_tokenizer, score
from strop.records import Example, Want
from strop.testing.tiny import tiny_model

EXAMPLES = random_examples(1, completions=(2, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16 with a tokenizer of four words."""
    path = tmp_path_factory.mktemp("llama")
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(path)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(path)
    return path


def test_a_module_is_returned_as_it_is() -> None:
    model = tiny_model("llama")
    assert load_model(model, task="score") is model


def test_the_padding_tokens_embedding_is_read_as_it_was_saved(tmp_path: Path) -> None:
    """Youtu zeroes it after reading, and its output layer is tied to it."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 32}
    sizes |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    config = AutoConfig.for_model("youtu", **sizes, vocab_size=64, num_hidden_layers=1, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    model.get_input_embeddings().weight.data[0] = 1.0
    model.save_pretrained(tmp_path)
    initialise = type(model)._init_weights
    assert float(load_model(tmp_path).get_input_embeddings().weight[0].min()) == 1.0
    assert type(model)._init_weights is initialise


def test_dtypes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(folder).dtype == torch.float32
    assert load_model(str(folder), trainable=False).dtype == torch.float32  # no accelerator here
    assert load_model(folder, dtype="auto").dtype == torch.bfloat16
    assert load_model(folder, dtype="float16").dtype == torch.float16
    assert load_model(folder, dtype=torch.float64).dtype == torch.float64
    assert load_model(folder, model_init_kwargs={"dtype": torch.float64}).dtype == torch.float64
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert load_model(folder, trainable=False).dtype == torch.bfloat16
    assert load_model(folder, trainable=True).dtype == torch.float32


@pytest.mark.parametrize(("task", "want"), [("score", Want.SCORE), ("step", Want.STEP)])
def test_heads_on_a_causal_checkpoint(folder: Path, task: str, want: Want) -> None:
    model = load_model(folder, task=task)
    scores = score(model, EXAMPLES, want=want)
    values = scores.scores if task == "score" else scores.step_logits
    assert values.isfinite().all()
    causal = load_model(folder)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, causal.model.layers[0].mlp.up_proj.weight)


def test_adapter_folder(folder: Path, tmp_path: Path) -> None:
    policy = apply_peft(load_model(folder), {"r": 2, "target_modules": ["q_proj"]})
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    policy.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, peft.PeftModel)
    assert torch.equal(score(loaded, EXAMPLES).logps, score(policy, EXAMPLES).logps)
    assert any(p.requires_grad for p in loaded.parameters())
    assert not any(p.requires_grad for p in load_model(tmp_path, trainable=False).parameters())
    assert load_tokenizer(tmp_path)("a b")["input_ids"] == [0, 1]  # its base model's
    (tmp_path / "adapter_config.json").write_text(
        (tmp_path / "adapter_config.json").read_text().replace(str(folder), "/nowhere/at/all")
    )
    with pytest.raises(SetupError, match=r"needs its base model\. There is no file or folder /nowhere/at/all"):
        load_model(tmp_path)


def _write_gguf(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(64)
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (64, 32), "output.weight": (64, 32), "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_up.weight": (64, 32), "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, (0.3 * draw.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file_and_folder(tmp_path: Path) -> None:
    _write_gguf(tmp_path / "tiny.gguf")
    model = load_model(tmp_path / "tiny.gguf")
    logps = score(model, EXAMPLES).logps
    assert logps.std() > 0.1
    assert torch.equal(score(load_model(tmp_path), EXAMPLES).logps, logps)
    model.save_pretrained(tmp_path / "saved")  # refused as long as the quantisation is remembered
    assert torch.equal(score(load_model(tmp_path / "saved"), EXAMPLES).logps, logps)
    assert score(load_model(tmp_path, task="score"), EXAMPLES, want=Want.SCORE).scores.isfinite().all()
    _write_gguf(tmp_path / "other.gguf")
    with pytest.raises(SetupError, match=r"several GGUF files \(other.gguf, tiny.gguf\)"):
        load_model(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(SetupError, match="cannot be loaded"):
        load_model(tmp_path / "broken.gguf")


def test_missing_paths_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SetupError, match=r"There is no file or folder /nowhere/model\. The folder /nowhere does not"):
        load_model("/nowhere/model")
    (tmp_path / "my-model").mkdir()
    with pytest.raises(SetupError, match="Did you mean 'my-model'"):
        load_model(str(tmp_path / "my-modell"))
    with pytest.raises(SetupError, match=r"no config.json and no weights .*; it holds nothing"):
        load_model(tmp_path / "my-model")
    with pytest.raises(SetupError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "my-model")
    with pytest.raises(SetupError, match=r"not a \.gguf file"):
        load_model(folder / "config.json")
    with pytest.raises(SetupError, match="empty string"):
        load_model("")


def test_a_hub_id_that_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match="HF_HUB_OFFLINE is set"):
        load_model("strop-tests/does-not-exist")
    with pytest.raises(SetupError, match="tokenizer 'strop-tests/does-not-exist'"):
        load_tokenizer("strop-tests/does-not-exist")


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "{broken"), ("config.json", "\xe9"), ("model.safetensors", "garbage"), ("model.safetensors", "")],
)
def test_damaged_folders(file: str, content: str, folder: Path, tmp_path: Path) -> None:
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / file).write_text(content, encoding="latin-1")
    for task in ("causal", "score"):
        with pytest.raises(SetupError, match="damaged or of another kind") as caught:
            load_model(tmp_path, task=task)
        assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"model_type": "vit"}, "Unrecognized configuration class"),
        ({"hidden_act": "no-such-act"}, "no-such-act"),
        ({"model_type": "bit"}, "but got ['preactivation'"),
        ({"num_attention_heads": 7}, "7"),
        ({"rope_parameters": {"rope_type": "no-such-rope", "rope_theta": 1.0}}, "no-such-rope"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_files_that_can_be_read_are_not_called_damaged(
    changed: dict[str, Any], cause: str, folder: Path, tmp_path: Path
) -> None:
    """What they describe cannot be made: the architecture, a function, sizes that do not fit."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(SetupError, match="its files can be read, but transformers") as caught:
        load_model(tmp_path)
    assert cause in str(caught.value) and "damaged" not in str(caught.value) and "\n" not in str(caught.value)


def test_code_of_its_own_is_a_matter_of_the_settings(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from transformers import LlamaConfig\n\n\nclass Own(LlamaConfig):\n    pass\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="pass trust_remote_code=True"):
        load_model(tmp_path)


def test_wrong_words_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'score'"):
        load_model(folder, task="scores")
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        load_model(folder, dtype="bflot16")


def test_tokenizers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer("c a")["input_ids"] == [2, 0]
    assert load_tokenizer(tokenizer) is tokenizer
    assert load_tokenizer(load_model(folder))("b")["input_ids"] == [1]
    with pytest.raises(SetupError, match="made in memory"):
        load_tokenizer(tiny_model("llama"))


def test_adapters_are_put_on_in_the_models_mode() -> None:
    model = tiny_model("llama")
    policy = apply_peft(model, peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
    assert not any(module.training for module in policy.modules())
    assert policy.active_peft_config.task_type == "CAUSAL_LM"
    headed = apply_peft(tiny_model("llama", task="score"), {"r": 2, "target_modules": ["q_proj"]})
    assert isinstance(headed, peft.PeftModelForSequenceClassification)
    assert score(headed, EXAMPLES, want=Want.SCORE).scores.shape == (6,)
    trained = {name for name, p in headed.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)


def test_wrong_adapters_are_refused() -> None:
    policy = apply_peft(tiny_model("llama"), {"r": 2, "target_modules": ["q_proj"]})
    with pytest.raises(ConfigError, match="carries an adapter already"):
        apply_peft(policy, {"r": 2})
    with pytest.raises(ConfigError, match="not a LoRA config"):
        apply_peft(tiny_model("llama"), {"rank": 2})
    with pytest.raises(ConfigError, match="PEFT cannot put"):
        apply_peft(tiny_model("llama"), {"target_modules": ["nothing_like_it"]})
    with pytest.raises(ConfigError, match=r"must be a peft\.PeftConfig"):
        apply_peft(tiny_model("llama"), 5)


def test_a_vision_language_folder_is_loaded_whole_and_reads_text(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=16, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**size, vocab_size=64), image_token_id=7)
    whole = LlavaForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    example = [Example([3, 4, 5], [[6, 8, 9]])]
    model = load_model(tmp_path)
    assert model.state_dict().keys() == whole.state_dict().keys()
    with torch.no_grad():
        logits = whole(input_ids=torch.tensor([[3, 4, 5, 6, 8, 9]])).logits[0, 2:5].log_softmax(-1)
        assert torch.allclose(score(model, example).logps, logits[range(3), [6, 8, 9]], atol=1e-5)
        headed = load_model(tmp_path, task="score")
        assert score(headed, example, want=Want.SCORE).scores.shape == (1,)
