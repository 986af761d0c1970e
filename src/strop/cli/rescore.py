"""`strop rescore RUN --reward_funcs R`: what a run sampled, scored by other rewards."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from strop.cli.flags import Flag, all_values
from strop.disk import write_text
from strop.errors import ConfigError, DataError

TITLE = """strop rescore RUN --reward_funcs R [R ...]: score a run's completions anew

They are read from RUN/samples.jsonl, and given to the rewards as in training:
conversations as messages, with the columns of their rows. Printed is how far
the new rewards agree with the logged ones; RUN/rescored.jsonl has both for each
completion. Ids are not kept, nor are environments: rewards that ask for them
cannot be asked again."""
FLAGS = (
    Flag(
        "reward_funcs",
        list[str],
        help="Model id or folder, module.function, file.py:function; or several.",
    ),
    Flag("reward_weights", list[float], help="Weight of each reward. None: 1 each."),
    Flag("output", str, help="Where the rewards are written, if not in RUN/rescored.jsonl."),
)


def run(argv: list[str]) -> int:
    folder, values = Path(argv[0]), all_values(argv[1:], FLAGS)
    if argv[0].startswith("--") or not (folder / "samples.jsonl").is_file():
        raise ConfigError(f"{argv[0]}: there is no samples.jsonl. Give the output_dir of a run: strop rescore RUN")
    if not values["reward_funcs"]:
        raise ConfigError("Nothing to score with; give --reward_funcs.")
    sys.path.insert(0, os.getcwd())  # modules beside, as in training
    rows = list(read_samples(folder / "samples.jsonl"))
    rescored = score(rows, values["reward_funcs"], values["reward_weights"])
    output = Path(values["output"] or folder / "rescored.jsonl")
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rescored))
    names = [*rescored[0]["rescored"], "total"]
    print(f"{'reward':<24} {'n':>6} {'mean':>9} {'logged':>9} {'correlation':>12} {'same order':>11}")
    for name in names:
        print(row_of_table(name, rescored, rows))
    print(f"Logged: the total reward of the run. Written: {output}")
    return 0


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """The completions of a run; raises `DataError` where the file has none, or a line that is none."""
    number = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield {**row, "prompt": row["prompt"], "completion": row["completion"]}
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}: it is no sample of a run ({error!r}).") from None
    if not number:
        raise DataError(f"{path} is empty: the run sampled nothing on a step that was logged.")


def score(rows: Sequence[Mapping[str, Any]], rewards: Any, weights: Any) -> list[dict[str, Any]]:
    """Each completion's step, logged reward, new rewards by name, and their weighted total; None: not judged."""
    from strop.rewards import RewardSet

    asked = [as_rewards_saw(row) for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.get("columns", {}))
    columns = {name: [row.get("columns", {}).get(name) for row in rows] for name in names}
    with RewardSet(rewards, weights=weights, on_error="skip") as given:
        table = given.score([prompt for prompt, _ in asked], [completion for _, completion in asked], None, columns)
    totals = table.total().tolist()
    by_name = zip(*(map(known, values) for values in table.values.tolist()), strict=True)
    return [
        {
            "step": row.get("step"), "logged": known(row.get("reward")),
            "rescored": dict(zip(table.names, new, strict=True)), "total": known(total),
        }
        for row, new, total in zip(rows, by_name, totals, strict=True)
    ]  # fmt: skip


def as_rewards_saw(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Prompt and completion of a sample in the form that rewards are given: texts, or messages."""
    from strop.online.groups import answer_to, without_begun_answer

    prompt = row["prompt"]
    if row.get("turns") and not isinstance(prompt, str):
        said = [{name: value for name, value in turn.items() if name != "tokens"} for turn in row["turns"]]
        return without_begun_answer(prompt), said
    return without_begun_answer(prompt), answer_to(prompt, row["completion"])


def known(value: Any) -> float | None:
    """A reward, or None where there was none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def row_of_table(name: str, rescored: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """A reward's count and mean, and its agreement with the logged total."""
    new = [row["total"] if name == "total" else row["rescored"][name] for row in rescored]
    both = [(i, new[i], row["logged"]) for i, row in enumerate(rescored) if None not in (new[i], row["logged"])]
    judged = [value for value in new if value is not None]
    numbers = [
        statistics.fmean(judged) if judged else None,
        statistics.fmean([old for _, _, old in both]) if both else None,
        correlation([value for _, value, _ in both], [old for _, _, old in both]),
        same_order([(json.dumps([rows[i].get("step"), rows[i]["prompt"]]), value, old) for i, value, old in both]),
    ]
    cells = [("-" if number is None else f"{number:.4f}") for number in numbers]
    return f"{name:<24} {len(judged):>6} {cells[0]:>9} {cells[1]:>9} {cells[2]:>12} {cells[3]:>11}"


def correlation(new: Sequence[float], old: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    return statistics.correlation(new, old) if len({*new}) > 1 and len({*old}) > 1 else None


def same_order(scored: Sequence[tuple[str, float, float]]) -> float | None:
    """Of the pairs of completions of one prompt that the logged rewards tell apart, the share that the new ones put in
    the same order; equal ones count half. None without such pairs."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for group, new, old in scored:
        groups.setdefault(group, []).append((new, old))
    agreed = [
        0.5 + 0.5 * ((a > c) - (a < c)) * ((b > d) - (b < d))
        for own in groups.values()
        for (a, b), (c, d) in itertools.combinations(own, 2)
        if b != d
    ]
    return statistics.fmean(agreed) if agreed else None
