from __future__ import annotations

import pytest

from strop.errors import DataError
from strop.plain_text import bounded, masked, visible


def test_nothing_acts():
    assert visible("a\x1b]8;;http://x\x07b\x1b[31m\x9b2J\r\u202ec\u2028d") == (
        "a\\x1b]8;;http://x\\x07b\\x1b[31m\\x9b2J\\x0d\\u202ec\\u2028d"
    )
    assert visible("tab\tline\nümlaut 日本 🙂") == "tab\tline\nümlaut 日本 🙂"


def test_long_text_loses_its_middle():
    assert bounded("x" * 10, 10) == "x" * 10
    short = bounded("a" * 500 + "b" * 500, 100)
    assert short.startswith("a" * 50) and short.endswith("b" * 50) and "900 characters left out" in short


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"token": "abc", "trust_remote_code": True}, {"token": "***", "trust_remote_code": True}),
        ({"auth_token": "abc", "API_KEY": "k"}, {"auth_token": "***", "API_KEY": "***"}),
        ({"a": [{"password": "x"}]}, {"a": [{"password": "***"}]}),
        ({"eos_token": "</s>", "max_tokens": 5, "token": None}, {"eos_token": "</s>", "max_tokens": 5, "token": None}),
        ("https://me:pw@host/x", "https://***@host/x"),
        ("uses hf_" + "A1b2" * 8 + " here", "uses *** here"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("https://host/x?y=1", "https://host/x?y=1"),
    ],
)
def test_secrets_are_masked_by_name_and_by_look(given, shown):
    assert masked(given) == shown


def test_errors_do_not_act_and_end_somewhere():
    said = str(DataError("role \x1b]0;title\x07 " + "x" * 1_000_000))
    assert "\x1b" not in said and len(said) < 25_000
    many = str(DataError.collect("Rows.", ["y" * 1_000_000] * 5))
    assert many.startswith("Rows.") and len(many) < 25_000 and many.count("left out") == 5
