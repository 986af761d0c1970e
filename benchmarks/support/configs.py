"""The smallest config of every causal architecture: two layers, one of each kind, width 32, windows of 8 tokens."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 288

_WIDTHS = (
    "hidden_size", "d_model", "n_embd", "embedding_dim", "dim", "emb_dim", "word_embed_proj_dim", "lru_width",
    "hidden_size_global",
)  # fmt: skip
_FEED_FORWARD = (
    "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff",
    "d_inner", "dff",
)  # fmt: skip
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "depth",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
    "mamba_n_heads", "mamba_num_heads", "linear_num_value_heads",
)  # fmt: skip
_POSITIONS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_source_positions",
    "max_target_positions",
)  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
_EXPERT_WIDTHS = (
    "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
    "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size",
)  # fmt: skip
_EIGHT = (
    "head_dim", "sliding_window", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim",
    "linear_value_head_dim", "hidden_size_per_layer_input", "index_topk", "window_size", "attention_window_size",
    "block_size", "mamba_chunk_size", "chunk_size", "patch_size",
)  # fmt: skip
_SIXTEEN = (
    "attention_chunk_size", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "mamba_d_head", "mamba_head_dim",
    "index_head_dim", "image_size",
)  # fmt: skip
_FOUR = ("state_size", "ssm_state_size", "mamba_d_state", "mamba_dt_rank", "time_step_rank", "laurel_rank")
_THREE = ("conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim")
_TWO = ("num_key_value_heads", "linear_num_key_heads")
_ONE = (
    "n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group", "first_k_dense_replace",
    "num_dense_layers", "decoder_sparse_step", "mamba_n_groups", "pretraining_tp", "bos_token_id",
)  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "mamba_d_ssm": 64, "pad_token_id": 0, "eos_token_id": 2,
    "router_jitter_noise": 0.0, "input_jitter_noise": 0.0,
    **dict.fromkeys(_WIDTHS, 32), **dict.fromkeys(_FEED_FORWARD, 48), **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4), **dict.fromkeys(_POSITIONS, 512), **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_CHOSEN, 2), **dict.fromkeys(_EXPERT_WIDTHS, 16), **dict.fromkeys(_EIGHT, 8),
    **dict.fromkeys(_SIXTEEN, 16), **dict.fromkeys(_FOUR, 4), **dict.fromkeys(_THREE, 3), **dict.fromkeys(_TWO, 2),
    **dict.fromkeys(_ONE, 1), "index_n_heads": 16,  # so many that no two tokens have the same score, 0
}  # fmt: skip
"""Field -> its smallest sensible value, for every config that has the field."""

_SLIDING = ["sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "full_attention"]
_NO_KERNELS = {"use_mamba_kernels": False}
_HYBRID = {"attn_layer_period": 2, "attn_layer_offset": 1, **_NO_KERNELS}


def _all(fields: dict[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: fields for name in names}


SPECIAL: dict[str, dict[str, Any]] = {
    **_all(
        {"layer_types": _SLIDING},
        (
            "olmo3", "exaone4", "cohere2", "ministral", "mellum", "granite_swa", "granitemoe_swa", "afmoe",
            "exaone_moe", "cwm",
        ),
    ),
    **_all(
        {"layer_types": _LINEAR},
        (
            "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "olmo_hybrid", "minimax",
        ),
    ),
    **_all(
        {"num_key_value_heads": 4},
        (
            "deepseek_v2", "deepseek_v3", "deepseek_v32", "axk1", "axk2", "glm4_moe_lite", "glm_moe_dsa",
            "longcat_flash", "minicpm3", "youtu", "hy_v4", "mistral_large4", "dots3_note_text",
        ),
    ),
    **_all(
        {"is_decoder": True},
        (
            "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
            "xmod",
        ),
    ),
    "bailing_hybrid": {"layer_types": _LINEAR, "num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "cohere_compass_text": {
        "layer_types": _SLIDING,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in _SLIDING},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "electra": {"is_decoder": True, "embedding_size": 32},
    "falcon": {"num_kv_heads": 4, "multi_query": False},
    "falcon_mamba": {"expand": 2},
    "gemma2": {
        "layer_types": _SLIDING, "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {"layer_types": _SLIDING, "query_pre_attn_scalar": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": _SLIDING * 2, "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {
        "num_hidden_layers": 4, "layer_types": _SLIDING * 2, "num_kv_shared_layers": 2, "global_head_dim": 8,
    },
    "dots3_note_vision_encoder": {  # its config speaks of the 42nd layer
        "num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"layer_types": _SLIDING, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gptj": {"rotary_dim": 8},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    "granitemoe": {"logits_scaling": 3.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "granitemoeshared": {"logits_scaling": 3.0},
    "hunyuan_v1_moe": {"moe_topk": [2, 2]},
    "jamba": {"expert_layer_period": 2, "expert_layer_offset": 1, **_HYBRID},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "kimi_linear": {"layer_types": _LINEAR, "num_key_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
        "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1,
    },
    "mamba": {"expand": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "n_groups": 1, "state_size": 8},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"], "index_block_size": 4, "index_topk_blocks": 2,
        "index_local_blocks": 1, "index_head_dim": 8, "index_n_heads": 2,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": None, "n_groups": 1, **_NO_KERNELS,
    },
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    "phimoe": {"router_jitter_noise": 0.01},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local"] * 2,
        "attention_head_size": 8, "local_attn_chunk_length": 16, "feed_forward_size": 48,
    },
    "rwkv": {"attention_hidden_size": 32, "rescale_every": 1},
    "xlstm": {"num_heads": 2, "head_dim": None},
    "zamba": {
        "num_hidden_layers": 6, "n_mamba_heads": 2, "num_key_value_heads": 4, "attention_head_dim": 16,
        "attn_layer_period": 3, "attn_layer_offset": 1, **_NO_KERNELS,
    },
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "mamba_headdim": 16,
        "n_mamba_heads": 4, "num_mem_blocks": 1, "num_key_value_heads": 4, **_NO_KERNELS,
    },
}  # fmt: skip
"""Architecture -> what its layers need beside or in place of `SMALL`."""


def small_config(arch: str, **more: Any) -> Any:
    """The smallest config of an architecture (a name of transformers' config mapping)."""
    if arch.endswith("_assistant"):  # has no default config
        shared = 4 if arch == "gemma4_assistant" else 2
        text = small_config(
            arch.replace("_assistant", "_text"), num_hidden_layers=4, layer_types=_SLIDING * 2,
            num_kv_shared_layers=shared, hidden_size_per_layer_input=0, vocab_size_per_layer_input=0,
        )  # fmt: skip
        more = {"text_config": text, "backbone_hidden_size": 32} | more
        return CONFIG_MAPPING[arch](**more)
    return _small(CONFIG_MAPPING[arch], SPECIAL.get(arch, {}) | more)


def _small(cls: Any, special: dict[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    names |= set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "attribute_map", {}))
    fields = {name: value for name, value in SMALL.items() if name in names}
    for name in cls.sub_configs:
        part = type(getattr(cls(), name, None))
        if name in names and issubclass(part, PreTrainedConfig):
            fields[name] = _small(part, SPECIAL.get(part.model_type, {}))
    return cls(**{name: value for name, value in (fields | special).items() if value is not None})
