"""Tiny models, tokenizers and data under the names that TRL's unit tests load, made from a checkout, without a network.

Models have random weights and the architectures that the names say. Tokenizers are byte-level BPE, learned from the
checkout's documentation, with the checkout's own chat templates. Data comes from the checkout's own generators.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

ORGANIZATION = "trl-internal-testing"
WORDS = 2000
"""Entries of a tokenizer beside its special tokens."""


@dataclass(frozen=True)
class Family:
    """How a family's texts begin and end, and its chat template: a file of the checkout, or the template itself."""

    template: str | None
    end: str
    pad: str | None = None
    begin: str | None = None
    begins: bool = True  # whether a text gets `begin` by itself
    further_ends: tuple[str, ...] = ()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA = {"end": "<|eot_id|>", "begin": "<|begin_of_text|>", "further_ends": ("<|end_of_text|>", "<|eom_id|>")}
QWEN = {"end": "<|im_end|>", "pad": "<|endoftext|>", "further_ends": ("<|endoftext|>",)}
GEMMA = {"end": "<eos>", "pad": "<pad>", "begin": "<bos>", "further_ends": ("<end_of_turn>",)}
COHERE = {"end": "<|END_OF_TURN_TOKEN|>", "pad": "<PAD>", "begin": "<BOS_TOKEN>"}
LFM = {"end": "<|im_end|>", "pad": "<|pad|>", "begin": "<|startoftext|>"}
DEEPSEEK = {"end": "<｜end▁of▁sentence｜>", "pad": "<｜▁pad▁｜>", "begin": "<｜begin▁of▁sentence｜>"}
PLAIN = Family(None, "<|endoftext|>")

FAMILIES: dict[str, Family] = {
    "qwen2.5": Family("qwen2_5.jinja", **QWEN),
    "qwen3": Family("qwen3.jinja", **QWEN),
    "qwen3-2507": Family("qwen3_instruct_2507.jinja", **QWEN),
    "llama3": Family("llama3.jinja", **LLAMA),
    "llama3.1": Family("llama3_1.jinja", **LLAMA),
    "llama3.2": Family("llama3_2.jinja", **LLAMA),
    "mistral": Family(INSTRUCT, end="</s>", begin="<s>"),
    "gemma": Family("gemma.jinja", **GEMMA),
    "gpt-oss": Family("gptoss.jinja", "<|return|>", "<|endoftext|>", "<|startoftext|>", False, ("<|call|>",)),
    "phi3": Family("phi3.jinja", "<|endoftext|>", "<|endoftext|>", "<s>", False),
    "phi3.5": Family("phi3_5.jinja", "<|endoftext|>", "<|endoftext|>", "<s>", False),
    "cohere": Family("cohere.jinja", **COHERE),
    "cohere2": Family("cohere2.jinja", **COHERE),
    "deepseek": Family("deepseekv3.jinja", **DEEPSEEK),
    "glm4": Family("glm4moe.jinja", "<|endoftext|>", "<|endoftext|>", further_ends=("<|user|>", "<|observation|>")),
    "lfm2": Family("lfm2.jinja", **LFM),
    "lfm2.5": Family("lfm2_2_5.jinja", **LFM),
    "nemotron": Family("nemotron_3_nano.jinja", "<|im_end|>", "<|im_end|>", "<s>", False),
    "chatml": Family(CHATML, "<|im_end|>", "<|pad|>"),
    "neox": PLAIN,
    "bloom": Family(None, "</s>", "<pad>", "<s>", False),
}


@dataclass(frozen=True)
class Model:
    """One stand-in: its tokenizer, and sizes beside the common ones. Its class is in its name."""

    family: str
    sizes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16


SIZES = {
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 32,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
HYBRID = {
    "hidden_size": 16, "num_hidden_layers": None, "layers_block_type": ["mamba", "attention", "moe"],
    "mamba_num_heads": 8, "mamba_head_dim": 4, "mamba_n_groups": 1, "ssm_state_size": 16, "use_mamba_kernels": False,
    "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 32, **EXPERTS,
}  # fmt: skip
MLA = {"num_attention_heads": 2}
MODELS: dict[str, Model] = {
    "tiny-Qwen2ForCausalLM-2.5": Model("qwen2.5"),
    "small-Qwen2ForCausalLM-2.5": Model("qwen2.5", {"hidden_size": 32}),
    "tiny-Qwen2ForSequenceClassification-2.5": Model("qwen2.5", {"hidden_size": 16}),
    "tiny-Qwen3ForCausalLM": Model("qwen3", {"head_dim": 8}),
    "small-Qwen3ForCausalLM": Model("qwen3", {"hidden_size": 32, "head_dim": 8}),
    "tiny-Qwen3ForCausalLM-Instruct-2507": Model("qwen3-2507", {"head_dim": 8}),
    "tiny-Qwen3ForSequenceClassification": Model("qwen3", {"hidden_size": 16, "head_dim": 8}),
    "tiny-Qwen3MoeForCausalLM": Model("qwen3", {"num_experts": 4, "head_dim": 8, "norm_topk_prob": True, **EXPERTS}),
    "tiny-Qwen3MoeForSequenceClassification": Model("qwen3", {"num_experts": 4, "head_dim": 8, **EXPERTS}),
    "tiny-GptOssForCausalLM": Model("gpt-oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}),
    "tiny-Glm4MoeForCausalLM": Model("glm4", {"head_dim": 2, "n_routed_experts": 4, "use_qk_norm": True, **EXPERTS}),
    "tiny-DeepseekV3ForCausalLM": Model("deepseek", MLA),
    "tiny-DeepseekV3ForCausalLM-0528": Model("deepseek", MLA),
    "tiny-NemotronHForCausalLM-nano": Model("nemotron", HYBRID),
    "tiny-LlamaForCausalLM-3": Model("llama3"),
    "tiny-LlamaForCausalLM-3.1": Model("llama3.1"),
    "tiny-LlamaForCausalLM-3.2": Model("llama3.2"),
    "tiny-LlamaForSequenceClassification-3.2": Model("llama3.2"),
    "tiny-MistralForCausalLM-0.1": Model("mistral"),
    "tiny-MistralForCausalLM-0.2": Model("mistral"),
    "tiny-GemmaForCausalLM": Model("gemma", {"head_dim": 2}),
    "tiny-Gemma2ForCausalLM": Model("gemma", {"head_dim": 2}),
    "tiny-Phi3ForCausalLM-3": Model("phi3"),
    "tiny-Phi3ForCausalLM-3.5": Model("phi3.5"),
    "tiny-CohereForCausalLM": Model("cohere"),
    "tiny-Cohere2ForCausalLM": Model("cohere2"),
    "tiny-Lfm2ForCausalLM": Model("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "tiny-Lfm2ForCausalLM-2.5": Model("lfm2.5", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "tiny-Olmo3ForCausalLM": Model("chatml"),
    "tiny-GPTNeoXForCausalLM": Model("neox", dtype=torch.float16),
    "tiny-GptNeoXForSequenceClassification": Model("neox"),
    "tiny-GPT2LMHeadModel": Model("neox", dtype=torch.float32),
    "tiny-OPTForCausalLM": Model("neox", {"word_embed_proj_dim": 8, "ffn_dim": 32}, torch.float16),
    "tiny-BloomForCausalLM": Model("bloom"),
    "tiny-FalconMambaForCausalLM": Model("chatml"),
    "tiny-T5ForConditionalGeneration": Model(
        "bloom", {"d_model": 24, "d_ff": 32, "d_kv": 8, "num_heads": 4, "decoder_start_token_id": 0}, torch.float32
    ),
}
GENERATORS = {
    "zen": "generate_zen_dataset",
    "toolcall": "generate_toolcall_dataset",
    "harmony": "generate_harmony_dataset",
}
"""Data set -> script of the checkout that makes it."""


def make_stand_ins(checkout: Path, folder: Path) -> dict[str, str]:
    """Everything into `folder`: a hub cache in `hub`, data in `data`.

    Returns:
        Name -> why it could not be made.
    """
    failed: dict[str, str] = {}
    base = learn(checkout)
    made = {name: make_tokenizer(base, family, checkout) for name, family in FAMILIES.items()}
    for name, model in MODELS.items():
        try:
            save_model(snapshot(folder, f"{ORGANIZATION}/{name}"), name, made[model.family])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    made["qwen3"].save_pretrained(qwen := snapshot(folder, "Qwen/Qwen3-4B"))
    transformers.Qwen3Config(vocab_size=len(made["qwen3"])).save_pretrained(qwen)
    save_remote(checkout, snapshot(folder, f"{ORGANIZATION}/tiny-RemoteForCausalLM"), made["llama3.2"])
    for name, script in GENERATORS.items():
        try:
            make_data(checkout / "scripts" / f"{script}.py", folder / "data" / name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def snapshot(folder: Path, repository: str) -> Path:
    """An empty folder where the hub's client looks for a repository."""
    commit = sha1(repository.encode()).hexdigest()
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    files = place / "snapshots" / commit
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    return files


def learn(checkout: Path) -> Tokenizer:
    """Byte-level BPE of the checkout's documentation and of the texts of its test data."""
    texts = [*sorted((checkout / "docs" / "source").rglob("*.md")), checkout / "scripts" / "generate_zen_dataset.py"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text.read_text(encoding="utf-8") for text in texts), trainer)
    return tokenizer


def make_tokenizer(base: Tokenizer, family: Family, checkout: Path) -> PreTrainedTokenizerFast:
    """The base with a family's template, and every token that the template or the family writes."""
    template = family.template
    if template is not None and template.endswith(".jinja"):
        template = (checkout / "trl" / "chat_templates" / template).read_text(encoding="utf-8")
    written = re.findall(r"<\|?[\w▁/｜]+\|?>", template or "")
    named = [family.pad, family.begin, family.end, *family.further_ends]
    own = Tokenizer.from_str(base.to_str())
    own.add_special_tokens(list(dict.fromkeys(token for token in [*named, *written] if token)))
    if family.begin and family.begins:
        begin = [(family.begin, own.token_to_id(family.begin))]
        pair = f"{family.begin} $A {family.begin} $B"
        own.post_processor = processors.TemplateProcessing(f"{family.begin} $A", pair, special_tokens=begin)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=family.end, pad_token=family.pad, bos_token=family.begin
    )
    tokenizer.chat_template = template
    return tokenizer


def save_model(files: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """A model of random weights with its tokenizer and its generation settings."""
    model, said = MODELS[name], name.split("-")[1]
    kind = getattr(transformers, next(known for known in dir(transformers) if known.lower() == said.lower()))
    family = FAMILIES[model.family]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad", "bos")}
    labels = {"num_labels": 1} if said.endswith("SequenceClassification") else {}
    sizes = {name: size for name, size in {**SIZES, **labels, **model.sizes}.items() if size is not None}
    torch.manual_seed(0)
    made = kind(kind.config_class(vocab_size=len(tokenizer), **ids, **sizes)).to(model.dtype)
    ends = tokenizer.convert_tokens_to_ids([family.end, *family.further_ends])
    if made.can_generate():
        made.generation_config = GenerationConfig(**{**ids, "eos_token_id": ends if len(ends) > 1 else ends[0]})
    made.save_pretrained(files)
    tokenizer.save_pretrained(files)


def save_remote(checkout: Path, files: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A model that needs the code that lies beside it."""
    save_model(files, "tiny-LlamaForCausalLM-3.2", tokenizer)
    for file in (checkout / "scripts/generate_tiny_models/for_causal_lm/_remote_code").glob("*_remote.py"):
        shutil.copy(file, files)
    settings = json.loads((files / "config.json").read_text())
    classes = ("AutoModel", "Model"), ("AutoModelForCausalLM", "ForCausalLM")
    classes += (("AutoModelForSequenceClassification", "ForSequenceClassification"),)
    code = {auto: f"modeling_remote.Remote{name}" for auto, name in classes}
    settings |= {"model_type": "remote", "auto_map": {"AutoConfig": "configuration_remote.RemoteConfig", **code}}
    (files / "config.json").write_text(json.dumps(settings))


def as_json(row: dict[str, Any]) -> dict[str, str]:
    """The tools of a row as text, as the hub's copy has them."""
    return {"tools": json.dumps(row["tools"])}


def make_data(script: Path, folder: Path) -> None:
    """What a generator of the checkout would push to the hub, one folder for each configuration."""

    def save(data: Any, repository: str, config_name: str = "default", **options: Any) -> None:
        parts = data if isinstance(data, datasets.DatasetDict) else datasets.DatasetDict({"train": data})
        (folder / config_name).mkdir(parents=True, exist_ok=True)
        for split, rows in parts.items():
            if "tools" in rows.column_names and not isinstance(rows[0]["tools"], str):
                rows = rows.map(
                    as_json, features=datasets.Features({**rows.features, "tools": datasets.Value("string")})
                )
            rows.to_parquet(str(folder / config_name / f"{split}.parquet"))

    specification = importlib.util.spec_from_file_location(script.stem, script)
    assert specification is not None and specification.loader is not None
    generator = importlib.util.module_from_spec(specification)
    sys.modules[script.stem] = generator  # dataclasses look their module up
    kept = datasets.DatasetDict.push_to_hub, datasets.Dataset.push_to_hub
    datasets.DatasetDict.push_to_hub = datasets.Dataset.push_to_hub = save
    try:
        specification.loader.exec_module(generator)
        generator.main(0.1, True, folder.name)
    finally:
        datasets.DatasetDict.push_to_hub, datasets.Dataset.push_to_hub = kept


if __name__ == "__main__":
    print(json.dumps(make_stand_ins(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
