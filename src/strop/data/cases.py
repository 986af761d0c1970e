"""One row -> cases: checked, converted to what the method needs, not yet tokenised.

A case is one tree to be: a prompt and its completions as text or messages. A broken row raises `RowProblem`; a row
that is in order but cannot be learned from becomes a case with `left_out` set, so that it is counted and named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strop.data.columns import (
    Said,
    read_ids,
    read_label,
    read_margin,
    read_mask,
    read_said,
    read_step_label,
    read_text,
)
from strop.data.convert import split_ids, split_messages, split_text
from strop.data.findings import RowProblem, kind_of_value
from strop.data.kinds import ACCEPTED, FORMS, DatasetKind, form_of
from strop.data.layouts import adapt, refuse_hidden_prompt
from strop.data.messages import Message, is_empty, is_learned, read_messages, read_tools
from strop.data.options import TokenizeOptions
from strop.data.rows import plain
from strop.records import Extras, Row

MARK = re.compile(r"\[([+-])\]")
SHARED_COLUMNS = ("tools", "chat_template_kwargs")


@dataclass(slots=True)
class Case:
    """One tree before tokenisation."""

    form: str  # the shape of the row it came from (kinds.FORMS, or "inline")
    prompt: Any = None  # str, messages, or ids; None: there is none
    completions: list[Any] = field(default_factory=list)  # like prompt; the steps for stepwise rows
    chat: bool = False
    ids: bool = False  # prompt and completions are token ids
    masks: list[list[int]] | None = None  # with ids: 0/1 per completion token
    extras: Extras = field(default_factory=Extras)
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, str] | None = None  # reason (a key of REASONS), detail
    notes: tuple[str, ...] = ()  # keys of findings.FLAGS
    layout: str | None = None  # the public data set whose columns the row had


def read_cases(row: Row, kind: DatasetKind, options: TokenizeOptions) -> list[Case]:
    """The cases of a row: one, or two where a pair becomes two labelled answers. Raises `RowProblem`."""
    row, layout = adapt(row, kind, options)
    if kind is DatasetKind.STEPWISE and options.label_format == "inline":
        form: str | None = "inline"
    else:
        form = form_of(row, ACCEPTED[kind], options)
    if form is None:
        raise _missing(row, kind)
    _refuse_images(row)
    cases = READERS[form](row, kind, options, form)
    _refuse_masks(cases[0], kind, options)
    tools, template_kwargs = _tools(row, options), _template_kwargs(row, options)
    for case in cases:
        case.layout = None if layout is None else layout.example
        case.tools, case.template_kwargs = tools, template_kwargs
        case.extras.setdefault("columns", {})
        if case.tools is not None:
            case.extras["tools"] = case.tools
        if row.get("chat_template_kwargs"):
            case.extras["chat_template_kwargs"] = template_kwargs
        if case.prompt is not None and not case.ids:
            case.extras["prompt"] = case.prompt
        case.notes += _blank_parts(case, asked=form != "inline" or "prompt" in row)
    return cases


def _blank_parts(case: Case, asked: bool) -> tuple[str, ...]:
    """The notes of a case whose prompt says nothing though it is `asked`, or whose completion is white space."""
    if case.ids:
        return ()
    prompt = ("blank_prompt",) if asked and case.prompt is not None and _is_blank(case.prompt) else ()
    return prompt + (("blank_completion",) if any(said and _is_blank(said) for said in case.completions) else ())


def _is_blank(said: Said) -> bool:
    """Whether a text, or every message of a conversation, is empty but for white space."""
    if isinstance(said, str):
        return not said.strip()
    return all(is_empty({**message, "content": message["content"].strip()}) for message in said)


def _refuse_none(row: Row, column: str) -> None:
    """A pair may lack a column of prompts, but where there is one, None is no prompt."""
    if column in row and row[column] is None:
        raise RowProblem(column, "is None", "Write the prompt, or leave the column out of all rows if there is none")


class MissingColumn(RowProblem):
    """No accepted shape has all its columns in this row."""


def _missing(row: Row, kind: DatasetKind) -> MissingColumn:
    """The column that is missing from the shape that comes nearest."""
    best = max(ACCEPTED[kind], key=lambda form: sum(name in row for name in FORMS[form]) - len(FORMS[form]) / 10)
    column = next((name for name in FORMS[best] if name not in row), FORMS[best][0])
    return MissingColumn(column, "is missing", f"The row has {list(row)[:8]}")


def _refuse_images(row: Row) -> None:
    for column in ("images", "image", "audio", "video", "pixel_values", "input_features"):
        value = row.get(column)
        if value is not None and not (isinstance(value, list) and not value):
            raise RowProblem(column, f"holds {kind_of_value(value)}", "strop trains on text: drop this column")


def _refuse_masks(case: Case, kind: DatasetKind, options: TokenizeOptions) -> None:
    """A loss setting that a row cannot honour is an error, not ignored."""
    if kind is not DatasetKind.LANGUAGE_MODELING or case.ids:
        return
    column = case.form if case.prompt is None else "completion"
    if options.assistant_only_loss and not case.chat:
        raise RowProblem(column, "is plain text, but assistant_only_loss=True", "Use conversations, or turn it off")
    if options.assistant_only_loss and any(m["role"] != "assistant" and is_learned(m) for m in case.completions[0]):
        raise RowProblem(column, "has a flag to learn another's message, but assistant_only_loss=True", "Remove one")
    if options.completion_only_loss and case.prompt is None:
        fix = "Use assistant_only_loss=True" if case.chat else "Use 'prompt' and 'completion' columns"
        raise RowProblem(column, "has no prompt, but completion_only_loss=True", f"{fix}, or turn it off")


def _tools(row: Row, options: TokenizeOptions) -> list[Any] | None:
    """A row's own tools, as schemas or as names of the run's; else the run's."""
    given, own = plain(row.get("tools")), options.tools or ()
    known = {tool["function"]["name"]: tool for tool in own if isinstance(tool, dict) and "function" in tool}
    if known and isinstance(given, list):
        given = [known.get(tool, tool) if isinstance(tool, str) else tool for tool in given]
    tools = read_tools(given)
    return list(options.tools) if tools is None and options.tools else tools


def _template_kwargs(row: Row, options: TokenizeOptions) -> dict[str, Any]:
    value = row.get("chat_template_kwargs")
    if value is not None and not isinstance(value, dict):
        raise RowProblem("chat_template_kwargs", f"is {kind_of_value(value)}", "Write an object")
    given = {key: item for key, item in (value or {}).items() if item is not None}
    return {**(options.chat_template_kwargs or {}), **given}


def _columns(row: Row, *used: str) -> dict[str, Any]:
    hidden = {*used, *SHARED_COLUMNS}
    return {key: value for key, value in row.items() if key not in hidden}


def _align(prompt: Said, completions: list[Said]) -> tuple[Said, list[Said], bool]:
    """One manner for all parts: if any is a conversation, strings become messages of their natural role."""
    if isinstance(prompt, str) and all(isinstance(said, str) for said in completions):
        return prompt, completions, False
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt, [[{"role": "assistant", "content": s}] if isinstance(s, str) else s for s in completions], True


def says_nothing(said: Said) -> bool:
    """Whether a completion gives nothing to learn: no text, no ids, or no assistant message that says something."""
    if isinstance(said, str) or not isinstance(next(iter(said), None), dict):
        return not said
    return all(is_empty(message) for message in said if message["role"] == "assistant")


def _need_answer(said: Said, column: str) -> None:
    if not isinstance(said, str) and not any(message["role"] == "assistant" for message in said):
        raise RowProblem(column, "holds no assistant message", "End it in the answer to learn from")


def _empty(*named: tuple[str, Any]) -> tuple[str, str] | None:
    names = [name for name, said in named if says_nothing(said)]
    return ("empty_completion", f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} empty") if names else None


def _read_whole_text(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    column = options.dataset_text_field
    text = read_text(row, column)
    return [Case(form, None, [text], extras={"columns": _columns(row, column)}, left_out=_empty((column, text)))]


def _read_conversation(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """A whole conversation, or what stands before its last answer as the prompt of that, maybe with a label."""
    column = FORMS[form][0]
    messages = read_messages(plain(row[column]), column)
    extras: Extras = {"columns": _columns(row, *FORMS[form])}
    if "label" in FORMS[form]:
        extras["label"] = read_label(row)
    if kind is not DatasetKind.LANGUAGE_MODELING:
        return [_split_answer(messages, column, extras)]
    case = Case(form, None, [messages], chat=True, extras=extras)
    if all(is_empty(message) for message in messages):
        case.left_out = ("empty_completion", "every message is empty")
    elif not any(message["role"] == "assistant" for message in messages):
        case.notes = ("no_answer",)
    return [case]


def _split_answer(messages: list[Message], column: str, extras: Extras) -> Case:
    """A conversation as a prompt and its last answer."""
    _need_answer(messages, column)
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if last == 0:
        raise RowProblem(column, "begins with the answer", "Put a user or system message before it")
    completion = [messages[last]]
    return Case(column, messages[:last], [completion], True, extras=extras, left_out=_empty(("the answer", completion)))


def _read_completion(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """Prompt and completion, with or without a label."""
    prompt, (completion,), chat = _align(read_said(row, "prompt"), [read_said(row, "completion")])
    _need_answer(completion, "completion")
    case = Case(form, prompt, [completion], chat, extras={"columns": _columns(row, "prompt", "completion")})
    case.left_out = _empty(("completion", completion))
    if form == "labelled":
        label = read_label(row)
        case.extras["columns"].pop("label")
        if kind is DatasetKind.UNPAIRED_PREFERENCE:
            case.extras["label"] = label
        elif not label:
            case.left_out = ("label_false", "label is false")
    elif chat is False and completion.startswith(prompt) and prompt:  # type: ignore[union-attr, arg-type]
        case.notes = ("repeats_prompt",)
    return [case]


def _read_pair(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """Chosen and rejected, with a prompt of their own or one that they share at their start."""
    chosen, rejected = read_said(row, "chosen"), read_said(row, "rejected")
    left_out = ("identical", "chosen equals rejected") if chosen == rejected else None
    given = read_said(row, "prompt") if row.get("prompt") is not None else None
    prompt, chosen, rejected, chat, notes = _find_prompt(given, chosen, rejected)
    if given is None and not chat:
        _refuse_none(row, "prompt")
        refuse_hidden_prompt(row, prompt)  # type: ignore[arg-type]
    _need_answer(chosen, "chosen")
    _need_answer(rejected, "rejected")
    if kind is DatasetKind.PROMPT_ONLY:
        return [Case(form, prompt, [], chat, extras={"columns": _columns(row, "prompt")}, notes=notes)]
    extras: Extras = {"columns": _columns(row, "prompt", "chosen", "rejected")}
    pair = Case(form, prompt, [chosen, rejected], chat, extras=extras, left_out=left_out, notes=notes)
    return _compared(pair, ("chosen", "rejected"), row, kind)


def _compared(pair: Case, names: Sequence[str], row: Row, kind: DatasetKind) -> list[Case]:
    """A pair as it is, or as two answers with a label, as the kind needs it."""
    if kind is DatasetKind.PREFERENCE:
        if row.get("margin") is not None:
            pair.extras["margin"] = read_margin(pair.extras["columns"].pop("margin"))
        pair.left_out = pair.left_out or _empty(*zip(names, pair.completions, strict=True))
        return [pair]
    return [
        replace(
            pair,
            completions=[said],
            extras={"columns": dict(pair.extras["columns"]), "label": label},
            left_out=pair.left_out or _empty((name, said)),
        )
        for name, said, label in zip(names, pair.completions, (True, False), strict=True)
    ]


def _find_prompt(prompt: Said | None, chosen: Said, rejected: Said) -> tuple[Said, Said, Said, bool, tuple[str, ...]]:
    """Prompt, chosen, rejected in one manner; the prompt is not repeated in the answers where that can be told."""
    _, (chosen, rejected), chat = _align("", [chosen, rejected])
    if chat and isinstance(prompt, str) and _share_context(chosen, rejected):  # type: ignore[arg-type]
        prompt = None  # the answers are whole conversations; the string repeats their first question
    if prompt is None:
        split: Callable[..., tuple[Any, Any, Any]] = split_messages if chat else split_text
        prompt, chosen, rejected = split(chosen, rejected)
        if chat and not prompt:
            fix = "Begin both with the same question, or add a 'prompt' column"
            raise RowProblem("chosen", "has no first message in common with 'rejected', so there is no prompt", fix)
        return prompt, chosen, rejected, chat, ()
    prompt, (chosen, rejected), chat = _align(prompt, [chosen, rejected])
    size = len(prompt)
    repeats = 0 < size < min(len(chosen), len(rejected)) and chosen[:size] == prompt == rejected[:size]
    if repeats and chat:
        return prompt, chosen[size:], rejected[size:], chat, ()
    return prompt, chosen, rejected, chat, (("repeats_prompt",) if repeats else ())


def _share_context(chosen: list[Message], rejected: list[Message]) -> bool:
    return min(len(chosen), len(rejected)) > 1 and chosen[0] == rejected[0] and chosen[0]["role"] != "assistant"


def _read_prompt(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    prompt = read_said(row, "prompt")
    shared = {name: row[name] for name in SHARED_COLUMNS if row.get(name) is not None}  # a reward may ask for them
    columns = _columns(row, "prompt") | shared
    return [Case(form, prompt, [], not isinstance(prompt, str), extras={"columns": columns})]


def _read_steps(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """A prompt and steps with a label each, which stand in columns or are marked in a text."""
    inline = form == "inline"
    prompt = read_said(row, "prompt") if not inline or "prompt" in row else ""
    steps, labels, used = _steps_in_text(row, options) if inline else _steps_in_columns(row)
    left_out = None if any(steps) else ("empty_completion", "there is no step")
    columns, chat = _columns(row, "prompt", *used), not isinstance(prompt, str)
    if kind is DatasetKind.STEPWISE:
        return [Case(form, prompt, steps, chat, extras={"columns": columns, "labels": labels}, left_out=left_out)]
    # The rule of convert.join_steps.
    extras: Extras = {"columns": columns, "label": all(label >= 0.5 for label in labels)}
    prompt, completions, chat = _align(prompt, [options.step_separator.join(steps)])
    return [Case(form, prompt, completions, chat, extras=extras, left_out=left_out)]


def _steps_in_columns(row: Row) -> tuple[list[str], list[float], tuple[str, ...]]:
    """The steps, their labels, and the columns that they stand in."""
    steps, labels = plain(row.get("completions")), plain(row.get("labels"))
    for column, value in (("completions", steps), ("labels", labels)):
        if not isinstance(value, list | tuple):
            raise RowProblem(column, f"is {kind_of_value(value)}", "Write a list with an entry per step")
    for number, step in enumerate(steps):
        if not isinstance(step, str):
            raise RowProblem("completions", f"step {number} is {kind_of_value(step)}", "Write each step as a string")
    if len(steps) != len(labels):
        raise RowProblem("labels", f"has {len(labels)} labels for {len(steps)} steps", "Give one label per step")
    read = [read_step_label(label, number) for number, label in enumerate(labels)]
    return list(steps), read, ("completions", "labels")


def _steps_in_text(row: Row, options: TokenizeOptions) -> tuple[list[str], list[float], tuple[str, ...]]:
    """The same of a text: `Step 1: ... [+] Step 2: ... [-]`. The marks become labels and leave the text."""
    column = "completion" if "completion" in row else options.dataset_text_field
    pieces = MARK.split(read_text(row, column))
    if len(pieces) < 3:
        fix = "End every step in [+] or [-], or use label_format='separator'"
        raise RowProblem(column, "has no [+] or [-] mark", fix)
    if rest := pieces[-1].strip():
        raise RowProblem(column, f"has text after its last mark: {rest[:30]!r}", "End every step in [+] or [-]")
    return [piece.strip() for piece in pieces[:-1:2]], [float(mark == "+") for mark in pieces[1::2]], (column,)


def refuse_unknown_ids(row: Row, case: Case, vocabulary: int) -> None:
    """Raise `RowProblem` for ids that the tokenizer does not have: the model would fail on them in the middle of a
    run."""
    for column in dict.fromkeys(("prompt_ids", *FORMS[case.form])) if case.ids else ():
        largest = max(plain(row.get(column)) or [0])
        if largest >= vocabulary:
            message = f"holds the id {largest}, but the tokenizer has {vocabulary} tokens"
            raise RowProblem(column, message, "Tokenise the rows with the model's tokenizer")


def _read_tokens(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """Rows with `input_ids`, and maybe `labels` (-100: not scored), `completion_mask`, `assistant_masks`."""
    ids = read_ids(row, "input_ids")
    used = ("input_ids", "labels", "completion_mask", "assistant_masks", "attention_mask", "seq_lengths")
    extras: Extras = {"columns": _columns(row, *used)}
    lengths = plain(row.get("seq_lengths"))
    if isinstance(lengths, list | tuple) and len(lengths) > 1:
        raise RowProblem("seq_lengths", "says that rows are packed already", "Give one document per row, and pack=True")
    attended = read_mask(row, "attention_mask", len(ids), bool) or [1] * len(ids)
    if kind is DatasetKind.PROMPT_ONLY:
        return [Case(form, [i for i, on in zip(ids, attended, strict=True) if on], [], ids=True, extras=extras)]
    mask = list(attended)
    for column, scored in (("labels", lambda item: item != -100), ("completion_mask", bool), ("assistant_masks", bool)):
        found = read_mask(row, column, len(ids), scored)
        mask = mask if found is None else [a & b for a, b in zip(mask, found, strict=True)]
    labels = plain(row.get("labels"))
    for position, token in enumerate(ids):
        if labels is not None and labels[position] not in (-100, token):
            raise RowProblem("labels", f"differs from input_ids at position {position}", "Labels are not shifted here")
    kept = [(token, on) for token, on, real in zip(ids, mask, attended, strict=True) if real]
    case = Case(form, None, [[token for token, _ in kept]], ids=True, masks=[[on for _, on in kept]], extras=extras)
    case.left_out = None if kept else ("empty_completion", "input_ids is empty")
    return [case]


def _read_token_parts(row: Row, kind: DatasetKind, options: TokenizeOptions, form: str) -> list[Case]:
    """`prompt_ids` with `completion_ids` or with `chosen_ids` and `rejected_ids`; pairs may lack a prompt."""
    names = [name for name in FORMS[form] if name != "prompt_ids"]
    parts = [read_ids(row, name) for name in names]
    case = Case(form, ids=True, extras={"columns": _columns(row, "prompt_ids", "label", *names)})
    if len(parts) == 2 and parts[0] == parts[1]:
        case.left_out = ("identical", "chosen_ids equals rejected_ids")
    if row.get("prompt_ids") is not None or len(parts) == 1:
        case.prompt, case.completions = read_ids(row, "prompt_ids"), parts
    else:
        _refuse_none(row, "prompt_ids")
        case.prompt, *case.completions = split_ids(*parts)
    if len(parts) == 2:
        return _compared(case, names, row, kind)
    case.left_out = _empty(*zip(names, parts, strict=True))
    if kind is DatasetKind.UNPAIRED_PREFERENCE:
        case.extras["label"] = read_label(row)
    return [case]


READERS: dict[str, Callable[[Row, DatasetKind, TokenizeOptions, str], list[Case]]] = {
    "text": _read_whole_text,
    "messages": _read_conversation,
    "conversations": _read_conversation,
    "completion": _read_completion,
    "labelled": _read_completion,
    "labelled_messages": _read_conversation,
    "labelled_conversations": _read_conversation,
    "pair": _read_pair,
    "prompt": _read_prompt,
    "steps": _read_steps,
    "inline": _read_steps,
    "tokens": _read_tokens,
    "token_pair": _read_token_parts,
    "token_completion": _read_token_parts,
}
