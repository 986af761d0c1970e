"""Rows of ids -> packs of ids, for scripts that pack by hand. `SFTConfig(packing=True)` packs inside the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strop.data.packing import STRATEGIES, best_fit
from strop.errors import ConfigError, did_you_mean
from strop.scripts.conversations import column_names

Columns = dict[str, list[Any]]


def pack_dataset(
    dataset: Any, seq_length: int, strategy: str = "bfd", map_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Put rows together into packs of at most `seq_length` ids; all columns of lists are packed alike.

    Args:
        dataset: a `Dataset`, `DatasetDict` or stream whose columns hold lists; others are left out.
        seq_length: ids of a pack.
        strategy: `bfd` keeps rows whole, and cuts those that are longer than a pack; `bfd_split` splits those into
            pieces; `wrapped` puts all ids in a row and cuts wherever a pack is full.
        map_kwargs: further arguments of `map`; packs never cross its batches.

    Returns:
        The packed data set; but for `wrapped`, with `seq_lengths`, the ids of each row in a pack.
    """
    if strategy not in STRATEGIES:
        known = ", ".join(map(repr, STRATEGIES))
        raise ConfigError(f"strategy is {strategy!r}; choose one of {known}.{did_you_mean(strategy, STRATEGIES)}")
    if seq_length < 1:
        raise ConfigError(f"A pack holds at least one id; seq_length is {seq_length}.")
    columns = column_names(dataset)
    work = _wrap if strategy == "wrapped" else _best_fit
    options = (
        {"seq_length": seq_length} if strategy == "wrapped" else {"seq_length": seq_length, "split": strategy != "bfd"}
    )
    return dataset.map(work, batched=True, remove_columns=columns, fn_kwargs=options, **(map_kwargs or {}))


def truncate_dataset(dataset: Any, max_length: int, map_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Cut every list of every row to its first `max_length` entries."""

    def cut(batch: Columns) -> Columns:
        return {
            name: [row[:max_length] if isinstance(row, list) else row for row in rows]
            for name, rows in _plain(batch).items()
        }

    return dataset.map(cut, batched=True, **(map_kwargs or {}))


def _plain(batch: Mapping[str, Any]) -> Columns:
    """Columns as lists, of data sets with a format (numpy, torch) too."""
    columns = {name: rows.tolist() if hasattr(rows, "tolist") else rows for name, rows in batch.items()}
    return {name: [row.tolist() if hasattr(row, "tolist") else row for row in rows] for name, rows in columns.items()}


def _lists(batch: Columns) -> Columns:
    columns = _plain(batch)
    found = {name: rows for name, rows in columns.items() if rows and all(isinstance(row, list) for row in rows)}
    if not found:
        raise ConfigError(f"Nothing to pack: none of {', '.join(batch)} holds lists. Tokenise the rows first.")
    return found


def _wrap(batch: Columns, seq_length: int) -> Columns:
    packed = {}
    for name, rows in _lists(batch).items():
        line = [entry for row in rows for entry in row]
        packed[name] = [line[start : start + seq_length] for start in range(0, len(line), seq_length)]
    return packed


def _best_fit(batch: Columns, seq_length: int, split: bool) -> Columns:
    columns = _lists(batch)
    lengths = [len(row) for row in next(iter(columns.values()))]
    pieces = [
        (row, start, min(start + seq_length, length))
        for row, length in enumerate(lengths)
        for start in (range(0, length, seq_length) if split else [0] if length else [])
    ]
    packs = [[pieces[i] for i in pack] for pack in best_fit([end - start for _, start, end in pieces], seq_length)]
    packed = {
        name: [[entry for row, start, end in pack for entry in rows[row][start:end]] for pack in packs]
        for name, rows in columns.items()
    }
    return packed | {"seq_lengths": [[end - start for _, start, end in pack] for pack in packs]}
