"""What a terminal is shown is broken between words, as far in as its line; a file has whole lines."""

from __future__ import annotations

import io
import os
import pty

import pytest

from strop.cli import main, usage
from strop.terminal import in_width, width_of


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is printed to is a terminal of 40 columns."""
    monkeypatch.setattr("strop.terminal.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "40")


def test_a_file_has_whole_lines() -> None:
    text = "short  line\n" + "word " * 50
    assert in_width(text) == text


def test_lines_are_broken_between_words_as_far_in_as_they_are(narrow: None) -> None:
    text = "short  line\n  warning: the evaluation rows are the training rows of this run"
    lines = in_width(text).splitlines()
    assert lines == ["short  line", "  warning: the evaluation rows are the", "  training rows of this run"]
    assert in_width("  - loss_type: one of sigmoid, hinge, ipo, robust") == (
        "  - loss_type: one of sigmoid, hinge,\n    ipo, robust"
    )
    assert in_width("  dpo      learn from pairs of a better and a worse answer") == (
        "  dpo      learn from pairs of a better\n           and a worse answer"
    )
    path = "/a/folder/whose/name/is/longer/than/the/terminal/is/wide.jsonl"
    assert path in in_width(f"written to {path} in the end").splitlines(), "what has no blank stays whole"


def test_a_column_that_takes_the_line_is_none(narrow: None) -> None:
    text = in_width("strop doctor METHOD --model M --lora      everything up to the first step")
    assert max(map(len, text.splitlines())) <= 40 and text.splitlines()[1].startswith("everything")


def test_the_stream_that_is_written_to_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    first, second = pty.openpty()
    try:
        with os.fdopen(second, "w") as terminal:
            import fcntl
            import struct
            import termios

            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 52, 0, 0))
            assert width_of(terminal) == 52
            assert max(map(len, in_width("word " * 40, terminal).splitlines())) <= 52
    finally:
        os.close(first)
    assert width_of(io.StringIO()) == 80
    closed = io.StringIO()
    closed.close()
    assert in_width("word " * 40, closed) == "word " * 40


def test_errors_and_pages_of_the_command_line_fit(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        ["dpo", "--learning_rat", "1", "--bta", "0.1", "--dataset", "rows.jsonl"],
        ["chek"],
        ["check", "no-such.jsonl"],
        ["--help"],
        ["doctor", "--help"],
        ["completion", "--help"],
        ["run", "--help"],
        ["check", "--help"],
        ["vllm-serve", "--help"],
    ]
    for argv in asked:
        main(argv)
        said = capsys.readouterr()
        wide = [line for line in (said.out + said.err).splitlines() if len(line) > 40 and " " in line.strip()]
        assert not wide, (argv, wide)


def test_the_usage_keeps_its_columns(narrow: None) -> None:
    lines = in_width(usage()).splitlines()
    found = next(place for place, line in enumerate(lines) if line.startswith("  recommend"))
    column = lines[found].index("which")
    assert lines[found + 1][:column].isspace() and not lines[found + 1][column].isspace()
