"""What trainers do otherwise than TRL's, and why: a reason for each failure of TRL's tests that a user could feel.

`benchmarks/trl_tests.py` matches failures with `patterns`, and docs/moving-from-trl.md lists the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """One thing that is otherwise here."""

    what: str
    why: str
    patterns: tuple[str, ...]  # regular expressions over "test: error" of TRL's unit tests


BEHAVIOURS: tuple[Behaviour, ...] = (
    Behaviour(
        "The metrics of the last steps are a log line of their own, before the end's summary, and not part of it",
        "every line that has a loss has the metrics of the same steps",
        (r"KeyError: '(aux_loss|mean_token_accuracy|policy_loss|entropy_coef)'",),
    ),
    Behaviour(
        "A loss that is not finite stops the run; TRL goes on to NaN weights",
        "the rows are named, the batch is kept, and the weights are those of the step before",
        (r"NonFiniteError",),
    ),
    Behaviour(
        "Encoder-decoder models are refused",
        "trees of one prompt and its completions are computed by decoders",
        (r"is an encoder-decoder",),
    ),
    Behaviour(
        "Adapters of virtual tokens (prompt, prefix and p-tuning) are refused",
        "positions of scored tokens are counted from the row's own beginning",
        (r"puts virtual tokens before the prompt",),
    ),
    Behaviour(
        "Models get no tag `trl`",
        "give tags to `push_to_hub(tags=...)` or `create_model_card(tags=...)`",
        (r"test_tag_added",),
    ),
    Behaviour(
        "A prepared pair is looked at under `prompt_ids`, `chosen_ids` and `rejected_ids`, in ORPO and CPO too",
        "all methods have one form of row",
        (r"'chosen_input_ids' in ",),
    ),
)


def behaviour_of(text: str) -> Behaviour | None:
    """The entry that explains a failure, given as "test: error"."""
    return next((b for b in BEHAVIOURS if any(re.search(pattern, text) for pattern in b.patterns)), None)
