"""`prepare`: rows in, examples out; and `check_rows`: the checks alone, without a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from strop.data.cache_folder import cache_key, folder_of
from strop.data.checks import check
from strop.data.dataset import ExampleDataset, ExampleStream
from strop.data.detect import detect
from strop.data.encode import Encoder
from strop.data.findings import Finding
from strop.data.kinds import DatasetKind
from strop.data.load import load_rows
from strop.data.options import TokenizeOptions
from strop.data.report import DataReport
from strop.data.rows import RowStream
from strop.data.store import TreeStore
from strop.data.trees import TreeBuilder
from strop.errors import ConfigError, did_you_mean

UNTEMPLATED = (DatasetKind.TOKENIZED, DatasetKind.STEPWISE)
"""Kinds for which plain text is usual, whatever the tokenizer."""
EAGER_ROWS = 4096
"""Sets of at most this many trees are tokenised at once by `prepare`."""


def prepare(
    rows: Any,
    kind: DatasetKind | str,
    tokenizer: Any,
    options: TokenizeOptions | None = None,
    *,
    cache_dir: str | Path | None = None,
    name: str = "train",
    eager_rows: int = EAGER_ROWS,
) -> ExampleDataset | ExampleStream:
    """Check all rows, convert them to `kind`, and offer them as tokenised trees.

    Every row is checked before this returns. Conversions between kinds happen where they are defined: pairs become
    labelled answers for UNPAIRED_PREFERENCE, stepwise rows too, desirable labelled answers become prompt-completion
    rows, the shared start of chosen and rejected becomes the prompt. When rows are tokenised: see dataset.py.

    Args:
        rows: whatever `load_rows` takes.
        kind: what the method needs (SFT: LANGUAGE_MODELING, GKD: PROMPT_COMPLETION, DPO and relatives: PREFERENCE,
            KTO and BCO: UNPAIRED_PREFERENCE, online methods: PROMPT_ONLY, PRM: STEPWISE).
        tokenizer: a transformers tokenizer.
        options: what is scored, where rows are cut.
        cache_dir: folder for tokenised rows; a second run with the same rows, tokenizer and options reads them from
            there and calls the tokenizer not once. Not used for streams.
        name: what the report calls the set.
        eager_rows: sets of at most this many trees are tokenised at once.

    Returns:
        `ExampleDataset`, or `ExampleStream` for rows that can only be walked.

    Raises:
        DataError: broken rows (all of them in one error), columns that fit another method, nothing to learn from.
        ConfigError: a setting that does not fit the rows or the tokenizer.
    """
    kind = as_kind(kind)
    options = options or TokenizeOptions()
    if options.tools:
        options = replace(options, tools=tuple(map(tool_schema, options.tools)))
    opened = load_rows(rows)
    builder = TreeBuilder(kind, Encoder(tokenizer, options), options)
    control = getattr(tokenizer, "all_special_tokens", ())
    checked = check(opened, kind, options, control, builder.encoder.vocabulary, name=name)
    found = _tokenizer_findings(checked.report, builder)
    if isinstance(opened, RowStream):
        return ExampleStream(opened, checked, builder, DataReport(name, opened.source, str(kind), noted=found))
    checked.report.noted += found
    total = len(checked.numbers)
    folder = None
    if cache_dir is not None:
        key = cache_key(checked.report.fingerprint, str(kind), options, builder.chat.template, tokenizer)
        folder = folder_of(cache_dir, name, key)
    store = TreeStore(total, folder, checked.report.note_cache)
    return ExampleDataset(opened, checked, builder, store, eager=total <= eager_rows)


def _tokenizer_findings(report: DataReport, builder: TreeBuilder) -> list[Finding]:
    """What the tokenizer lacks for these rows; raises `ConfigError` if it cannot be done without."""
    plain_rows = report.trees - report.conversational
    if report.conversational:
        builder.chat.require()
    findings = []
    if plain_rows and getattr(builder.encoder.tokenizer, "chat_template", None) and builder.kind not in UNTEMPLATED:
        message = f"{plain_rows} rows are plain text, so the tokenizer's chat template is not applied to them"
        findings.append(Finding(None, None, "info", message, "Write messages to have it applied"))
    needs_end = builder.kind not in (DatasetKind.PROMPT_ONLY, DatasetKind.STEPWISE, DatasetKind.TOKENIZED)
    if plain_rows and needs_end and builder.options.append_eos and builder.encoder.eos_id is None:
        message = "the tokenizer has no EOS token, so completions do not end and the model is not taught to stop"
        findings.append(Finding(None, None, "warning", message, "Set eos_token"))
    return findings


def check_rows(
    rows: Any,
    kind: DatasetKind | str | None = None,
    options: TokenizeOptions | None = None,
    *,
    name: str = "data",
) -> DataReport:
    """Check rows without a tokenizer: the same checks as `prepare`, up to tokenisation.

    Args:
        rows: whatever `load_rows` takes.
        kind: what the rows are for; None: what they look like (`detect`).

    Returns:
        The report, without lengths and sample.

    Raises:
        DataError: as `prepare` does.
    """
    options = options or TokenizeOptions()
    opened = load_rows(rows)
    if kind is None:
        if isinstance(opened, RowStream):
            raise ConfigError("A stream can only be walked; say what its rows are for with `kind`.")
        kind = detect(opened, options).kind
    kind = as_kind(kind)
    return check(opened, kind, options, name=name).report


def as_kind(kind: DatasetKind | str) -> DatasetKind:
    """A kind by its name; raises `ConfigError`."""
    try:
        return DatasetKind(kind)
    except ValueError:
        known = [str(member) for member in DatasetKind]
        raise ConfigError(
            f"kind is {kind!r}; choose one of {', '.join(known)}.{did_you_mean(str(kind), known)}"
        ) from None


def tool_schema(tool: Any) -> Any:
    """A tool as a JSON schema; a Python function is read by its type hints and docstring (transformers)."""
    if isinstance(tool, dict):
        return tool
    if not callable(tool):
        raise ConfigError(f"tools: a {type(tool).__name__} is no tool; give JSON schemas or Python functions.")
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as problem:  # transformers raises classes of its own for hints and docstrings it cannot read
        name = getattr(tool, "__name__", repr(tool))
        raise ConfigError(f"tools: the function '{name}' cannot be described ({problem}).") from None
