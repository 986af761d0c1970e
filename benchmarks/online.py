"""Whole optimizer steps of online methods, sampling included, in strop and in TRL, in turns.

    python -m benchmarks.online --model DIR --methods grpo rloo --prompts 2 --generations 8 --prompt 128 --completion 64

Each library samples its own completions with temperature 1. They end where the model ends them; a model that is asked
to go on with random words hardly ever does, so nearly all have `--completion` tokens in both libraries, and useful
tokens are counted as if all had: prompts once, completions once. "TRL tuned" is float32 without checkpointing, with
which TRL also samples from a key/value cache; "TRL defaults" checkpoint in bfloat16 autocast. Needs TRL.
"""

from __future__ import annotations

import argparse
import importlib
import random
import tempfile
from typing import Any

from benchmarks.offline import load, single_token_words
from benchmarks.turns import Clock, peak_bytes, run, touch

CLASSES = {
    "grpo": "GRPO", "rloo": "RLOO", "ppo": "PPO", "online-dpo": "OnlineDPO",
    "xpo": "XPO", "nash-md": "NashMD", "gkd": "GKD",
}  # fmt: skip
EXPERIMENTAL = {
    name: f"trl.experimental.{name.replace('-', '_')}" for name in ("online-dpo", "gkd", "ppo", "xpo", "nash-md")
}
LIBRARIES = ("strop", "trl tuned", "trl defaults")
JUDGED = ("ppo", "xpo", "nash-md")  # by a reward model
GROUPS = {"online-dpo": 2, "xpo": 2, "nash-md": 2, "gkd": 1, "ppo": 1}
"""Completions of a prompt; `--generations` elsewhere."""


def letters(completions: list[Any], **kwargs: Any) -> list[float]:
    """A reward that differs between completions and costs nothing."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in texts]


def make_rows(method: str, tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prompts of random words; for GKD conversations with an answer that on-policy distillation does not use."""
    rng = random.Random(0)
    words = single_token_words(tokenizer)
    rows: list[dict[str, Any]] = []
    for _ in range(options.prompts * options.steps):
        text = "".join(rng.choice(words) for _ in range(options.prompt))
        if method == "gkd":
            answer = "".join(rng.choice(words) for _ in range(options.completion))
            rows.append({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]})
        else:
            rows.append({"prompt": text})
    return rows


def settings_for(library: str, method: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Arguments of the config; both libraries sample the same number of completions for the same prompts."""
    group = GROUPS.get(method, options.generations)
    batch = options.prompts * (group if method in ("grpo", "rloo") else 1)  # the others count prompts, in both
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": options.steps, "save_strategy": "no", "report_to": "none",
        "learning_rate": 1e-6, "use_cpu": True, "seed": 0, "temperature": 1.0, "disable_tqdm": True,
        "per_device_train_batch_size": batch,
    }  # fmt: skip
    if method in ("grpo", "rloo"):
        settings |= {"num_generations": group, "max_completion_length": options.completion}
    elif method == "ppo" and library != "strop":
        settings |= {"response_length": options.completion, "total_episodes": options.prompts * options.steps}
    else:
        settings |= {"max_new_tokens": options.completion}
    if method == "ppo":
        settings |= {"num_ppo_epochs": 1, "num_mini_batches": 1}
    if method == "gkd":
        settings |= {"lmbda": 1.0, "max_length": 1024}
    if library == "trl tuned":
        settings |= {"bf16": False, "gradient_checkpointing": False}
    return settings


def make_trainer(library: str, method: str, models: dict[str, Any], options: argparse.Namespace, folder: str) -> Any:
    """A trainer of either library, ready to run."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = make_rows(method, tokenizer, options)
    if method == "ppo" and library != "strop":
        rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in rows]
        models = {**models, "reward_model": models["reward_funcs"]}
        del models["reward_funcs"]
    module: Any = importlib.import_module("strop" if library == "strop" else EXPERIMENTAL.get(method, "trl"))
    return getattr(module, f"{CLASSES[method]}Trainer")(
        args=getattr(module, f"{CLASSES[method]}Config")(**settings_for(library, method, options, folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **models,
    )


def load_models(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the trainer is given beside the rows: the policy, and a teacher, a reward function or models."""
    models: dict[str, Any] = {"model": load(options.model)}
    if method == "gkd":
        models["teacher_model"] = load(options.model)
    elif method in JUDGED:
        models |= {"ref_model": load(options.model), "reward_funcs": load(options.model, "reward")}
    else:
        models["reward_funcs"] = letters
    if method == "ppo":
        models["value_model"] = load(options.model, "reward")
    return models


def one_turn(library: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Load, train a few steps, and report."""
    models = load_models(method, options)
    touch(*(model for model in models.values() if model is not letters))
    weights, clock = peak_bytes(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        clock.time(make_trainer(library, method, models, options, folder))
    group = GROUPS.get(method, options.generations)
    return {
        "seconds": clock.seconds,
        "useful_tokens_per_step": options.prompts * (options.prompt + group * options.completion),
        "peak_bytes": peak_bytes(),
        "above_weights_bytes": peak_bytes() - weights,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--methods", nargs="+", default=["grpo"], choices=sorted(CLASSES))
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    run("benchmarks.online", parser, one_turn, LIBRARIES)


if __name__ == "__main__":
    main()
