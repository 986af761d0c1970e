"""`strop generate`: complete prompts with a model; from the command line or a file, to the terminal or a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from strop.cli.flags import Flag, all_values
from strop.disk import write_text
from strop.errors import ConfigError
from strop.plain_text import visible

MODEL_FLAGS = (
    Flag("model", str, help="Model: hub id, folder, GGUF file, or adapter folder. Required."),
    Flag("tokenizer", str, help="Tokenizer, if it is not the model's own."),
    Flag("dtype", str, help="Weights' precision: float32, bfloat16, float16, auto."),
)
SAMPLING_FLAGS = (
    Flag("max_new_tokens", int, 256, "Most tokens of an answer."),
    Flag("temperature", float, 0.7, "0 takes the most probable token each time."),
    Flag("top_p", float, 1.0, "Sample from the most probable tokens that make up this share."),
    Flag("top_k", int, 0, "Sample from this many most probable tokens; 0 is all."),
    Flag("seed", int, 0, "Seed of the sampling."),
)
FLAGS = (
    *MODEL_FLAGS,
    Flag("prompt", str, help="One prompt, as text. With a chat template it is one user message."),
    Flag("prompts", str, help="File with a column `prompt` (text, or messages), one row each."),
    Flag("num_generations", int, 1, "Completions per prompt."),
    Flag("output", str, help="Write completions to this JSONL file instead of the terminal."),
    Flag("raw", bool, False, "Use prompts as plain text even if the model has a chat template."),
    *SAMPLING_FLAGS,
)
TITLE = "strop generate: complete prompts with a model"


def run(argv: list[str]) -> int:
    values = all_values(argv, FLAGS)
    if not values["model"]:
        raise ConfigError("--model must be given. See strop generate --help.")
    prompts = read_prompts(values)
    model, tokenizer = load(values)
    ids = [encode(tokenizer, prompt, raw=values["raw"]) for prompt in prompts]
    rollout = sample(model, tokenizer, ids, values)
    rows = [
        {
            "prompt": prompt,
            "completion": tokenizer.decode(completion, skip_special_tokens=True),
            "finish_reason": reason,
        }
        for prompt, completions, reasons in zip(prompts, rollout.completions, rollout.finish_reasons, strict=True)
        for completion, reason in zip(completions, reasons, strict=True)
    ]
    if values["output"]:
        write_text(Path(values["output"]), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{len(rows)} completions in {values['output']}")
        return 0
    for row in rows:
        if len(rows) > 1:
            print(shown(f"--- {row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]['content']}"))
        print(shown(row["completion"]))
    return 0


def shown(text: str) -> str:
    """A model's text for standard output: in a terminal it does nothing, in a pipe it is what it is."""
    return visible(text) if sys.stdout.isatty() else text


def read_prompts(values: dict[str, Any]) -> list[Any]:
    if (values["prompt"] is None) == (values["prompts"] is None):
        raise ConfigError("Give either --prompt TEXT or --prompts FILE.")
    if values["prompt"] is not None:
        return [values["prompt"]]
    from strop.data import load_rows

    rows = list(load_rows(values["prompts"]))
    if missing := [i for i, row in enumerate(rows) if not row.get("prompt")]:
        raise ConfigError(
            f"--prompts {values['prompts']}: rows {missing[:10]} have no `prompt`. Columns found: {sorted(rows[0])}."
        )
    return [row["prompt"] for row in rows]


def load(values: dict[str, Any]) -> tuple[Any, Any]:
    """Model in evaluation mode on the best device, and tokenizer."""
    import torch

    from strop.cli.train import quiet_loading
    from strop.model import load_model, load_tokenizer

    quiet_loading()
    tokenizer = load_tokenizer(values["tokenizer"] or values["model"])
    options = {"dtype": values["dtype"]} if values["dtype"] else {}
    model = load_model(values["model"], model_init_kwargs=options, trainable=not torch.cuda.is_available())
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def encode(tokenizer: Any, prompt: Any, *, raw: bool = False) -> list[int]:
    """Ids of a prompt: text as it is, or rendered as the start of a conversation where there is a chat template."""
    if isinstance(prompt, str) and (raw or not tokenizer.chat_template):
        return tokenizer(prompt)["input_ids"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def sample(model: Any, tokenizer: Any, ids: list[list[int]], values: dict[str, Any]) -> Any:
    from strop.rollout import SamplingParams, make_generator

    sampling = SamplingParams(
        max_new_tokens=values["max_new_tokens"],
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=values["top_k"],
        seed=values["seed"],
    )
    generator = make_generator("auto", model=model, tokenizer=tokenizer)
    return generator.generate(ids, values.get("num_generations", 1), sampling)
