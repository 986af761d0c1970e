"""What `benchmarks.gpu` measures on: random models of real shapes, rows of exact lengths, and padded rows beside."""

from __future__ import annotations

import random
from typing import Any

import torch

WORDS = 997
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "4B": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Of Qwen3-0.6B and 4B, and one to try the script with."""


def model_of(shape: str, device: torch.device) -> Any:
    """A random model in float32, as weights that are trained whole are kept."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape], max_position_embeddings=8192))
    model.config.name_or_path = f"random-{shape}"
    return model


def tokenizer_of() -> Any:
    """A tokenizer to which every word is one token, so that rows have the length that is asked for."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def rows_of(method: str, count: int, prompt: int, completion: int) -> list[dict[str, str]]:
    """Rows of random words; the end of text is the last token of a completion."""
    draw = random.Random(0)
    text = lambda length: " ".join(f"w{draw.randrange(WORDS)}" for _ in range(length))  # noqa: E731
    answers = ("chosen", "rejected") if method == "dpo" else ("completion",)
    return [{"prompt": text(prompt)} | {name: " " + text(completion - 1) for name in answers} for _ in range(count)]


def padded_update(
    model: Any, prompt: list[int], completions: list[list[int]], advantages: torch.Tensor, *, rows_at_once: int
) -> None:
    """Gradient of a policy loss of rows padded one by one, each with its prompt, logits of completions only."""
    device, cuda = advantages.device, advantages.is_cuda
    rows = torch.tensor([prompt + completion for completion in completions], device=device)  # (G, P + C)
    length = len(completions[0])
    for start in range(0, len(rows), rows_at_once):
        part, own = rows[start : start + rows_at_once], advantages[start : start + rows_at_once]
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = model(
                part, attention_mask=torch.ones_like(part), logits_to_keep=length + 1, use_cache=False
            ).logits
        targets = part[:, -length:].unsqueeze(-1)
        logps = logits[:, :-1].float().log_softmax(-1).gather(-1, targets).squeeze(-1)  # (rows, C)
        loss = -((logps - logps.detach()).exp() * own[:, None]).sum() / (len(rows) * length)
        loss.backward()
