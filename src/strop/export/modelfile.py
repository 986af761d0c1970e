"""A Modelfile for Ollama beside a GGUF file. It reads the chat template from the file; stops are written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def modelfile(gguf_file: str | Path, tokenizer: Any) -> str:
    """The text of a Modelfile: where the weights are, and the tokens that end a turn."""
    stops = dict.fromkeys(token for token in (tokenizer.eos_token, *turn_ends(tokenizer)) if token)
    lines = [f"FROM ./{Path(gguf_file).name}", *(f'PARAMETER stop "{token}"' for token in stops)]
    return "\n".join(lines) + "\n"


def turn_ends(tokenizer: Any) -> list[str]:
    """Special tokens that the chat template writes after an answer."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "@@"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    rest = str(text).rpartition("@@")[2]
    return [token for token in tokenizer.all_special_tokens if token in rest]
