"""`strop chat`: talk to a model in the terminal. Answers appear as they are written."""

from __future__ import annotations

import sys
from typing import Any

from strop.cli.flags import Flag, all_values
from strop.cli.generate import MODEL_FLAGS, SAMPLING_FLAGS, encode, load, shown
from strop.errors import ConfigError

FLAGS = (*MODEL_FLAGS, Flag("system", str, help="System message that opens the conversation."), *SAMPLING_FLAGS)
COMMANDS = "/clear starts over, /exit (or Ctrl-D) leaves"
TITLE = f"strop chat: talk to a model in the terminal; {COMMANDS}"


def run(argv: list[str]) -> int:
    values = all_values(argv, FLAGS)
    if not values["model"]:
        raise ConfigError("--model must be given. See strop chat --help.")
    model, tokenizer = load(values)
    if not tokenizer.chat_template:
        print("This model has no chat template: each line is continued as plain text.", file=sys.stderr)
    if sys.stdin.isatty():
        print(f"{values['model']}: {COMMANDS}")
    opening = [{"role": "system", "content": values["system"]}] if values["system"] else []
    messages = list(opening)
    while (line := read_line()) is not None:
        if line == "/exit":
            break
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": answer(model, tokenizer, messages, values)})
    return 0


def read_line() -> str | None:
    """The next line, stripped; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], values: dict[str, Any]) -> str:
    """One answer, printed while it is written."""
    import torch
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(shown(text), stream_end=stream_end)

    ids = encode(tokenizer, messages if tokenizer.chat_template else messages[-1]["content"])
    inputs = torch.tensor([ids], device=next(model.parameters()).device)
    warm = values["temperature"] > 0
    torch.manual_seed(values["seed"] + len(messages))
    with torch.inference_mode():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=values["max_new_tokens"],
            do_sample=warm,
            **(
                {"temperature": values["temperature"], "top_p": values["top_p"], "top_k": values["top_k"]}
                if warm
                else {}
            ),
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
