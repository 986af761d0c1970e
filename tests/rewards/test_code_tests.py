from __future__ import annotations

import functools
import json
import os

import pytest
from tests.support.patience import with_patience

from strop.errors import ConfigError, DataError, SetupError
from strop.rewards import RewardSet
from strop.rewards.code_tests import CodeTests, extract_code, read_tests
from strop.rewards.code_tests import get_code_reward as code_reward_behind
from strop.rewards.sandbox.places import find_wall

get_code_reward = functools.partial(code_reward_behind, allow_unsafe_code=True)
code_reward = get_code_reward()
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes"),
    pytest.mark.filterwarnings("ignore:Model-written code runs without a wall"),
]

DOUBLE = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
HALF_RIGHT = "```python\ndef double(x):\n    return x + 2\n```"
ECHO = "```\nprint(int(input()) * 2)\n```"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (DOUBLE, "def double(x):\n    return 2 * x"),
        ("x = 1", "x = 1"),
        ("<think>hm</think>x = 1", "x = 1"),
        ("```py\na\n```\ntext\n```python\nb\n```", "b"),
        ("```python\nunclosed = 1", "unclosed = 1"),
        ("```bash\nls\n```", ""),
        ("```bash\nls\n```\n```python\nx\n```\n```json\n{}\n```", "x"),
        ("", ""),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


CASES = CodeTests(cases=(("1", "2"), ("3\n4", "5")))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("assert f(1)", CodeTests(snippets=("assert f(1)",))),
        (["assert a", "assert b"], CodeTests(snippets=("assert a", "assert b"))),
        (json.dumps(["assert a", "assert b"]), CodeTests(snippets=("assert a", "assert b"))),
        ("[f(x) for x in (1, 2)]", CodeTests(snippets=("[f(x) for x in (1, 2)]",))),
        ([{"input": "1", "output": "2"}, {"input": ["3", "4"], "output": 5}], CASES),
        ({"inputs": ["1", ["3", "4"]], "outputs": ["2", "5"]}, CASES),
        (json.dumps({"inputs": ["1", "3\n4"], "outputs": ["2", "5"]}), CASES),
        (None, None),
        ([], None),
        ("  ", None),
    ],
)
def test_read_tests(given, read):
    assert read_tests(given) == read


def test_check_is_called_with_the_entry_point():
    assert read_tests("def check(f):\n    assert f(1)", "double").snippets[0].endswith("check(double)\n")
    assert read_tests("assert double(1)", "double").snippets == ("assert double(1)",)


@pytest.mark.parametrize("wrong", [[1, 2], [{"input": "1"}], {"inputs": [1], "outputs": []}, ["a", {"input": 1}]])
def test_unreadable_tests(wrong):
    with pytest.raises(DataError, match="column 'tests'"):
        read_tests(wrong)


def test_all_or_nothing_and_partial_credit():
    tests = [["assert double(2) == 4", "assert double(3) == 6"]] * 3 + [None]
    completions = [DOUBLE, [{"role": "assistant", "content": HALF_RIGHT}], "```bash\nls\n```", DOUBLE]
    assert code_reward(completions, tests) == [1.0, 0.0, 0.0, None]
    logged = {}
    partial = get_code_reward(partial=True)(completions, tests, log_extra=logged.__setitem__)
    assert partial == [1.0, 0.5, 0.0, None]
    assert logged == {"code_status": ["ok", "ok", "no code", "no tests"]}


def test_programs_with_inputs():
    cases = [[{"input": "2\n", "output": "4"}, {"input": "-1", "output": "-2 \n"}]]
    assert code_reward([ECHO], cases) == [1.0]
    wrong = [[{"input": "2", "output": "5"}, {"input": "2", "output": "4"}]]
    assert code_reward([ECHO], wrong) == [0.0]
    assert get_code_reward(partial=True)([ECHO], wrong) == [0.5]


def test_human_eval_form():
    test = "def check(candidate):\n    assert candidate(4) == 8\n"
    assert code_reward([DOUBLE, HALF_RIGHT], [test] * 2, entry_point=["double"] * 2) == [1.0, 0.0]


@with_patience(0.5, 10.0)
def test_hangs_and_crashes_are_zero(seconds):
    completions = ["while True: pass", "import os; os._exit(0)", "x = 1"]
    reward = get_code_reward(timeout_seconds=seconds)
    assert reward(completions, ["pass"] * 3) == [0.0, 0.0, 1.0]


@with_patience(0.5, 10.0)
def test_a_program_that_never_ends_passes_nothing_even_if_its_tests_do(seconds):
    forever = "import threading, time\nthreading.Thread(target=lambda: [time.sleep(1) for _ in iter(int, 1)]).start()"
    assert get_code_reward(timeout_seconds=seconds)([forever], ["pass"]) == [0.0]
    assert get_code_reward(timeout_seconds=seconds, partial=True)([forever], ["pass"]) == [1.0]


@pytest.mark.skipif(find_wall()[0] is None, reason=f"no wall here: {find_wall()[1]}")
def test_in_a_reward_set():
    with RewardSet("code_reward") as rewards:
        table = rewards.score(["p"] * 2, [DOUBLE, HALF_RIGHT], None, {"tests": ["assert double(3) == 6"] * 2})
        assert table.values.tolist() == [[1.0, 0.0]]
        assert rewards.places["code_reward"] == "this process"
        with pytest.raises(SetupError, match="column 'tests'"):
            rewards.score(["p"], [DOUBLE], None, {"tests": [[1]]})


def test_wrong_settings():
    with pytest.raises(ConfigError, match="max_workers is 0"):
        get_code_reward(max_workers=0)
