"""Rows -> rows, as scripts prepare them by hand: prompts taken out of pairs, pairs taken apart, templates applied.

Trainers do all of this themselves; a script that has done it already gives them the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strop.data.encode import common_prefix
from strop.errors import DataError

COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
SHAPES = (
    {"messages"},
    {"prompt"},
    {"prompt", "completion"},
    {"prompt", "completion", "label"},
    {"prompt", "chosen", "rejected"},
    {"chosen", "rejected"},
)


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether a row's texts are lists of messages with a role."""
    texts = [example[name] for name in COLUMNS if name in example]
    return bool(texts and isinstance(texts[0], list) and texts[0]) and _has(texts[0][0], "role")


def is_conversational_from_value(example: Mapping[str, Any]) -> bool:
    """Whether a row's `conversations` is a list of messages written as from / value."""
    turns = example.get("conversations")
    return isinstance(turns, list) and bool(turns) and _has(turns[0], "from") and "value" in turns[0]


def _has(message: Any, key: str) -> bool:
    return isinstance(message, Mapping) and key in message


def maybe_convert_to_chatml(example: dict[str, Any]) -> dict[str, Any]:
    """Messages written as from / value become role / content, and `conversations` becomes `messages`."""
    names = {"from": "role", "value": "content"}
    converted = dict(example)
    for column in (*COLUMNS, "conversations"):
        if isinstance(converted.get(column), list):
            converted[column] = [
                {names.get(key, key): value for key, value in turn.items()} if isinstance(turn, Mapping) else turn
                for turn in converted[column]
            ]
    if "conversations" in converted:
        converted["messages"] = converted.pop("conversations")
    return converted


def extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """A pair whose prompt is the common beginning of chosen and rejected, with that beginning as `prompt`.

    Of texts a space before the point where they part goes to the completions.
    """
    chosen, rejected = example["chosen"], example["rejected"]
    same = common_prefix(list(chosen), list(rejected))  # a frame's arrays, tuples
    if same == min(len(chosen), len(rejected)) and same:
        same -= 1  # one begins the other: something must be left to prefer
    if same and chosen[same - 1] == " ":
        same -= 1
    return {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:]}


def maybe_extract_prompt(example: dict[str, Any]) -> dict[str, Any]:
    """`extract_prompt`, unless the row is no pair or has a prompt of the same form as its completions."""
    if "chosen" not in example or "rejected" not in example:
        return example
    if "prompt" in example:
        forms = {is_conversational({column: example[column]}) for column in ("prompt", "chosen")}
        if len(forms) == 1:
            return example
    return extract_prompt(example)


def unpair_preference_dataset(dataset: Any, **map_kwargs: Any) -> Any:
    """A data set of pairs -> one row per completion, with `completion` and `label`: all chosen, then all rejected of
    each batch that `map` works on. Further columns go along."""
    columns = column_names(dataset)
    return dataset.map(_unpair, batched=True, remove_columns=columns, **map_kwargs)


def maybe_unpair_preference_dataset(dataset: Any, num_proc: int | None = None, desc: str | None = None) -> Any:
    """`unpair_preference_dataset`, if the data set holds pairs."""
    if not {"chosen", "rejected"} <= set(column_names(dataset)):
        return dataset
    options = {"num_proc": num_proc, "desc": desc} if hasattr(dataset, "__len__") else {}
    return unpair_preference_dataset(dataset, **options)


def column_names(dataset: Any) -> list[str]:
    """Of a data set, of one of splits, or of a stream."""
    part = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    return list(part.column_names or next(iter(part)))


def _unpair(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    rows = len(batch["chosen"])
    others = {name: 2 * values for name, values in batch.items() if name not in ("chosen", "rejected")}
    return {**others, "completion": batch["chosen"] + batch["rejected"], "label": [True] * rows + [False] * rows}


def apply_chat_template(
    example: Mapping[str, Any], processing_class: Any, tools: list[Any] | None = None, **template_kwargs: Any
) -> dict[str, Any]:
    """The row's conversations as texts: `messages` becomes `text`, the other columns keep their names.

    A prompt that ends with the user is opened for an answer; one that ends with the assistant is left open. The
    completion is what the joint rendering adds to the prompt.
    """
    columns = {name for name in (*COLUMNS, "label") if name in example}
    if columns not in SHAPES:
        raise DataError(
            f"A row with {', '.join(sorted(columns)) or 'none of the known columns'} has no form that a chat template "
            f"applies to. Give one of: {'; '.join(', '.join(sorted(shape)) for shape in SHAPES)}."
        )
    options = {**(example.get("chat_template_kwargs") or {}), **template_kwargs}

    def render(messages: list[Any], **ending: bool) -> str:
        return processing_class.apply_chat_template(messages, tools=tools or None, tokenize=False, **ending, **options)

    answers = [name for name in ("chosen", "rejected", "completion") if name in example]
    if "messages" in example:
        return {"text": render(example["messages"])}
    if "prompt" not in example:
        return {name: render(example[name]) for name in answers}
    whole = {name: render([*example["prompt"], *example[name]]) for name in answers}
    prompt = render(example["prompt"], **_ending(example["prompt"]))
    for text in whole.values():  # a template may open an answer with more than the answer then begins with
        prompt = prompt[: common_prefix(prompt, text)]
    row: dict[str, Any] = {"prompt": prompt, **{name: text[len(prompt) :] for name, text in whole.items()}}
    return row | ({"label": example["label"]} if "label" in example else {})


def _ending(prompt: list[Any]) -> dict[str, bool]:
    role = prompt[-1]["role"]
    if role in ("user", "tool"):
        return {"add_generation_prompt": True}
    if role == "assistant":
        return {"continue_final_message": True}
    raise DataError(f"A prompt must end with a message of user, tool or assistant; this one ends with {role!r}.")


def maybe_apply_chat_template(
    example: dict[str, Any], processing_class: Any, tools: list[Any] | None = None, **template_kwargs: Any
) -> dict[str, Any]:
    """`apply_chat_template`, if the row is conversational."""
    if not is_conversational(example):
        return example
    return apply_chat_template(example, processing_class, tools, **template_kwargs)
