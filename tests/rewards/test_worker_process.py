from __future__ import annotations

import json

from strop.rewards.contract import Failure, Outcome
from strop.rewards.worker_process import Printed, decode_outcome, encode_outcome


def test_printed_keeps_the_first_characters_and_counts_the_rest():
    printed = Printed(limit_chars=5)
    assert printed.write("abc") == 3
    assert printed.write("defgh") == 5
    assert printed.write("ij") == 2
    assert printed.take() == ("abcde", 5)
    print("k", file=printed, end="")
    assert printed.take() == ("k", 0)


def test_outcomes_survive_json():
    outcome = Outcome(
        values=[0.1, None, None],
        failed={2: Failure("value", "it returned nan")},
        metrics=[("m", 1.5)],
        extras={"column": ["a", "b", "c"]},
    )
    assert decode_outcome(json.loads(json.dumps(encode_outcome(outcome)))) == outcome
    failed = Outcome(failure=Failure("exception", "it raised"))
    assert decode_outcome(json.loads(json.dumps(encode_outcome(failed)))) == failed
