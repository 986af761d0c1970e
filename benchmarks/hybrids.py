"""Random models of about 100M weights whose layers are not attention alone, to hold offline benchmarks on.

    python -m benchmarks.hybrids --tokenizer runs/assets/smollm2-135m-instruct --to runs/assets

Speed does not depend on what the weights are. The tokenizer is borrowed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "lfm2": {
        "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 16, "num_attention_heads": 10,
        "num_key_value_heads": 5, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    },
    "qwen3_next": {
        "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "linear_num_key_heads": 8, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
        "intermediate_size": 1408, "mlp_only_layers": list(range(12)), "router_aux_loss_coef": 0.0,
    },
}  # fmt: skip


def main() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    for name, sizes in SIZES.items():
        config = AutoConfig.for_model(
            name,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        folder = options.to / f"{name}-random"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M weights")


if __name__ == "__main__":
    main()
