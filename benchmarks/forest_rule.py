"""From where on a common beginning pays: the constants of the cost rule in `strop.model.forest`, measured.

    python -m benchmarks.forest_rule --turns 9

Rows that begin alike and go on apart are scored, forward and backward, with their beginning computed once and with a
copy for each row; the two ways take turns, and the time that sharing gains is the median over turns. For a number of
tokens below the beginning the gain is a line in the tokens that are saved,

    gain = a token's time * (saved - break_even),

and a second line through its break-evens is the rule: `break_even = CALL + below / MERGE`. The model has the layers of
SmolLM2-135M in width, a few of them (what is measured happens in each), and one token of a row is scored.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from benchmarks.shared import SHAPE
from benchmarks.turns import RESULTS, store

SAVED = (8, 24, 48, 96, 160)
SHAPES = ((2, 64), (2, 256), (4, 256), (4, 512), (8, 512))
"""(rows, tokens of each below the beginning)"""
VOCABULARY = 1024  # a large one's gradient would be most of what is timed, and no part of what is asked


def seconds(model: Any, rows: int, beginning: int, own: int, shared: bool, draw: random.Random) -> float:
    """Of a forward and a backward pass over rows that are drawn anew."""
    from strop.model import build_batch, score_batch
    from strop.model.forest import always
    from strop.records import Example

    ids = lambda length: [draw.randrange(rows, VOCABULARY) for _ in range(length)]  # noqa: E731
    head, mask = ids(beginning), [[0] * (beginning + own - 1) + [1]]
    examples = [Example([], [[*head, row, *ids(own - 1)]], loss_mask=mask) for row in range(rows)]
    batch = build_batch(examples, shares=always if shared else None)
    model.zero_grad()
    begin = time.perf_counter()
    score_batch(model, batch).logps.sum().backward()
    return time.perf_counter() - begin


def break_even(model: Any, rows: int, own: int, turns: int, draw: random.Random) -> dict[str, float]:
    """Tokens that must be saved where `rows` of `own` tokens each hang on one beginning."""
    saved, gains = [], []
    for beginning in sorted({max(1, tokens // (rows - 1)) for tokens in SAVED}):
        pairs = [[seconds(model, rows, beginning, own, way, draw) for way in (False, True)] for _ in range(turns + 1)]
        saved.append(float((rows - 1) * beginning))
        gains.append(statistics.median(apart - together for apart, together in pairs[1:]))
    token, lost = statistics.linear_regression(saved, gains)
    return {"below": rows * own, "break_even": -lost / token, "token_us": token * 1e6}


def main() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from strop.model.forest import CALL, MERGE

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--name", help="also write the result to benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = SHAPE | {"num_hidden_layers": options.layers, "vocab_size": VOCABULARY}
    model, draw = LlamaForCausalLM(LlamaConfig(**shape)), random.Random(0)
    found = []
    for rows, own in SHAPES:
        found.append(break_even(model, rows, own, options.turns, draw))
        ours = {"rule": CALL + found[-1]["below"] / MERGE}
        print(f"{rows} rows of {own}", json.dumps({k: round(v, 1) for k, v in (found[-1] | ours).items()}), flush=True)
    slope, call = statistics.linear_regression([f["below"] for f in found], [f["break_even"] for f in found])
    merge = 1 / slope if slope > 0 else float("inf")
    print(f"measured: saved > {call:.0f} + below / {merge:.0f}; the rule: saved > {CALL} + below / {MERGE}")
    if options.name:
        command = f"python -m benchmarks.forest_rule --layers {options.layers} --turns {options.turns}"
        store(RESULTS / f"{options.name}.json", command, call=call, merge=merge, found=found)


if __name__ == "__main__":
    main()
