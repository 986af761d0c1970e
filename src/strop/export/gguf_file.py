"""A model as one GGUF file, for llama.cpp and Ollama.

Names of tensors and settings are the `gguf` package's; weights are written as F32, F16, BF16 or in blocks of 32 (Q8_0,
Q5_1, Q5_0, Q4_1, Q4_0). K-quants are made from such a file by llama.cpp's own tool. Architectures: those whose layers
are Llama's, with Qwen's biases and norms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from strop.errors import ConfigError, SetupError, did_you_mean

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""transformers' model type -> llama.cpp's architecture."""
PRE_TOKENIZERS = {"qwen2": "qwen2", "qwen3": "qwen2", "llama": "llama-bpe", "mistral": "default"}
SMOLLM_VOCABULARY = 49152
BLOCK = 32


def write_gguf(model: Any, tokenizer: Any, path: str | Path, quantization: str = "f16") -> Path:
    """Write a causal language model (not an adapter: see `merged`) and its tokenizer.

    Raises:
        ConfigError: an unknown type, or an architecture or tokenizer that is not written here.
        SetupError: the `gguf` package is missing.
    """
    gguf = gguf_package()
    kind = check(model, tokenizer, quantization)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    architecture = getattr(gguf.MODEL_ARCH, ARCHITECTURES[kind])
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[architecture])
    add_settings(writer, gguf, model.config, quantization)
    add_tokenizer(writer, gguf, tokenizer, model.config, kind)
    for name, array, stored in tensors(gguf, architecture, model, quantization):
        writer.add_tensor(name, array, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise SetupError("GGUF files need the package gguf. Install it: pip install 'strop[gguf]'.") from None
    return gguf


def check(model: Any, tokenizer: Any, quantization: str) -> str:
    """The model type, if everything about it can be written."""
    problems = []
    kind = str(getattr(model.config, "model_type", type(model).__name__))
    if quantization not in TYPES:
        hint = did_you_mean(quantization, TYPES)
        more = " K-quants are made by llama.cpp's llama-quantize from an f16 file." if "_k" in quantization else ""
        problems.append(f"quantization={quantization!r}: choose one of {', '.join(TYPES)}.{hint}{more}")
    if model.get_output_embeddings() is None:
        problems.append(f"{type(model).__name__} has no language-model head; llama.cpp would take none for one.")
    if kind not in ARCHITECTURES:
        problems.append(
            f"architecture {kind!r}: written here are {', '.join(ARCHITECTURES)}; use llama.cpp's converter."
        )
    elif model.config.hidden_size % BLOCK and quantization.startswith("q"):
        problems.append(f"hidden_size={model.config.hidden_size} is no multiple of {BLOCK}; use f16.")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or json.loads(backend.to_str())["model"]["type"] != "BPE":
        problems.append("tokenizer: byte-level BPE tokenizers are written here; use llama.cpp's converter.")
    if problems:
        raise ConfigError.collect("This model cannot be written as GGUF:", problems)
    return kind


def add_settings(writer: Any, gguf: Any, config: Any, quantization: str) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ("default", "linear"):
        raise ConfigError(f"rope_type={rope['rope_type']!r} is not written here; use llama.cpp's converter.")
    writer.add_name(Path(str(getattr(config, "name_or_path", "") or config.model_type)).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    names = {"f32": "ALL_F32", **{name: f"MOSTLY_{name.upper()}" for name in TYPES[1:]}}
    writer.add_file_type(getattr(gguf.LlamaFileType, names[quantization]))


def add_tokenizer(writer: Any, gguf: Any, tokenizer: Any, config: Any, kind: str) -> None:
    """Tokens with their kinds, merges, special ids, and the chat template as it is."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items()}
    tokens, kinds = [], []
    for index in range(config.vocab_size):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        entry = added.get(index)
        control = entry is not None and entry.special
        unused = gguf.TokenType.UNUSED if index not in by_id else gguf.TokenType.NORMAL
        kinds.append(gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED if entry else unused)
    writer.add_tokenizer_model("gpt2")
    smollm = kind == "llama" and config.vocab_size == SMOLLM_VOCABULARY
    writer.add_tokenizer_pre("smollm" if smollm else PRE_TOKENIZERS[kind])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    for name in ("bos", "eos", "pad", "unk"):
        if (special := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            getattr(writer, f"add_{name}_token_id")(special)
    writer.add_add_bos_token(bool(getattr(tokenizer, "add_bos_token", False)))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def tensors(gguf: Any, architecture: Any, model: Any, quantization: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, contents and stored type of every weight, in the order of the model."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ConfigError(f"The weight {name} has no place in GGUF's {config.model_type}; merge its adapter first.")
        array = weight.detach().to("cpu", torch.float32)
        if architecture == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            count = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            array = interleaved(array, count)
        broken = quantization.startswith("q") and array.shape[-1] % BLOCK  # rows that no blocks fill
        wanted = "f32" if array.dim() < 2 else "f16" if broken else quantization
        stored = getattr(gguf.GGMLQuantizationType, wanted.upper())
        yield target, gguf.quants.quantize(array.numpy(), stored), stored


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix in llama.cpp's order of rotary pairs: halves (x, y) become pairs (x0, y0, ...)."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
