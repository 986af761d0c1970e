"""The settings of tokenisation: what is scored, where a row is cut, which template renders it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import ConfigError, did_you_mean

CHOICES: dict[str, tuple[str, ...]] = {
    "truncation_mode": ("keep_start", "keep_end"),
    "boundary": ("auto", "separate", "common_prefix", "error"),
    "label_format": ("separator", "inline"),
}


@dataclass(slots=True, frozen=True)
class TokenizeOptions:
    """How checked rows become `Example` trees. All lengths are in tokens; None means no limit.

    Raises `ConfigError` that lists every wrong field.
    """

    max_length: int | None = None
    """Longest tree branch: prompt plus one completion (for prompt-only rows: the prompt)."""
    truncation_mode: str = "keep_start"
    """`keep_start` cuts the end of completions; `keep_end` cuts the start of the prompt, once for all completions."""
    max_prompt_length: int | None = None
    """Longest prompt; a longer one loses its beginning (BOS and the system header stay)."""
    max_completion_length: int | None = None
    """Longest completion; a longer one loses its end."""
    filter_overlong: bool = False
    """Leave rows over a limit out instead of cutting them (reward models: a cut moves the scored token)."""
    split_overlong: bool = False
    """Keep rows over `max_length` whole, for a packing that splits them (`bfd_split`, `wrapped`)."""
    completion_only_loss: bool | None = None
    """Score the completion only. None: True for rows with prompt and completion, False for whole texts."""
    assistant_only_loss: bool = False
    """Score the assistant's tokens of a conversation only."""
    score_prompt: bool = False
    """Score the prompt's tokens too (ORPO's NLL on the prompt)."""
    dataset_text_field: str = "text"
    """Column that holds plain text for language modeling."""
    boundary: str = "auto"
    """What to do where the prompt's ids are no prefix of the ids of prompt + completion (rule R1).

    `separate`: prompt ids followed by the completion's own ids; `common_prefix`: the prompt ends at the first
    difference; `error`: the row is broken; `auto`: separate for plain text, common_prefix for chat.
    """
    append_eos: bool = True
    """Plain text: end every completion in EOS, once. Chat templates end their turns themselves."""
    eos_token: str | None = None
    """Token that ends a completion; None is the tokenizer's own EOS."""
    stop_token_ids: tuple[int, ...] = ()
    """Further ids that end a completion (the model's `generation_config.eos_token_id`)."""
    learned_positions: int | None = None
    """Positions in the model's table of learned ones, None if it has no table: a longer row is an error."""
    strip_after_eos: bool = True
    """Drop white space that a chat template prints after the last end of turn: a model never generates it."""
    chat_template: str | None = None
    """Jinja template; None is the tokenizer's own."""
    chat_template_path: str | None = None
    """A template file, or a folder that holds `chat_template.jinja` or `tokenizer_config.json`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template; a row's own `chat_template_kwargs` win."""
    tools: tuple[Any, ...] | None = None
    """Tools for every row that names none itself: JSON schemas or Python functions."""
    step_separator: str = "\n"
    """Text that ends every step of stepwise rows; its last token carries the step's label."""
    label_format: str = "separator"
    """Stepwise rows: `separator` reads completions and labels; `inline` reads `[+]` and `[-]`, and removes them."""
    skip_bad_rows: bool = False
    """Count and name broken rows instead of stopping."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}; choose one of {', '.join(map(repr, allowed))}."
            + did_you_mean(str(getattr(self, name)), allowed)
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        for name in ("max_length", "max_prompt_length", "max_completion_length"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                problems.append(f"{name} is {value!r}; give a number of tokens, 1 or more, or None for no limit.")
        if not self.step_separator:
            problems.append("step_separator is empty; every step must end in at least one token.")
        if self.filter_overlong and self.split_overlong:
            problems.append("filter_overlong and split_overlong say two things about long rows; keep one of them.")
        if self.chat_template and self.chat_template_path:
            problems.append("chat_template and chat_template_path are both set; keep one of them.")
        if problems:
            raise ConfigError.collect("The tokenisation settings cannot be used:", problems)

    def template(self) -> str | None:
        """The Jinja source that these options name, None for the tokenizer's own; raises `ConfigError`."""
        if self.chat_template_path is None:
            return self.chat_template
        return read_template(Path(self.chat_template_path))


def repr_of_tool(tool: Any) -> str:
    """A stable text for a value that JSON cannot hold; a memory address would change from run to run."""
    return getattr(tool, "__qualname__", None) or repr(tool)


def read_template(path: Path) -> str:
    """Read a chat template from a file, or from a folder as transformers saves it; raises `ConfigError`."""
    for file in (path / "chat_template.jinja", path / "tokenizer_config.json") if path.is_dir() else (path,):
        try:
            text = file.read_text(encoding="utf-8")
            template = json.loads(text).get("chat_template") if file.suffix == ".json" else text
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as problem:
            raise ConfigError(f"chat_template_path: '{file}' cannot be read ({problem}).") from None
        if isinstance(template, str) and template.strip():
            return template
    raise ConfigError(
        f"chat_template_path: no chat template in '{path}'. Give a Jinja file, or a folder with "
        "chat_template.jinja or a tokenizer_config.json that holds one."
    )
