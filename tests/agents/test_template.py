"""A conversation's context is, turn for turn, what the chat template prints: of templates of every habit."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from tests.support.templates import KINDS, tokenizer_with

from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.agents.tools import Tools
from strop.errors import ConfigError
from strop.testing.templates import Stepping, double, play

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
BEGIN, END = "<!-- templates -->", "<!-- end -->"
COLUMNS = ("one call", "two calls", "thoughts and a call", "environment", "environment, thoughts", "calls")
ONE, FORKS, REFUSED = "one", "forks", "refused"
WANTED = {
    "gathered": (ONE, ONE, ONE, ONE, ONE),
    "forgetful": (ONE, ONE, ONE, ONE, FORKS),
    "opened": (FORKS, FORKS, ONE, FORKS, FORKS),
    "endless": (ONE, ONE, ONE, ONE, ONE),
    "single": (ONE, REFUSED, ONE, ONE, ONE),
    "other_end": (REFUSED, REFUSED, REFUSED, ONE, ONE),
    "blind": (ONE, ONE, ONE, ONE, ONE),
    "deaf": (REFUSED, REFUSED, REFUSED, ONE, ONE),
}
"""By template, for the `COLUMNS`."""


def template_row(tokenizer, stop_ids=()):
    """What becomes of conversations under a chat template, by kind: "one", "forks", or "refused"."""
    kinds = {
        "one call": {}, "two calls": {"calls": 2}, "thoughts and a call": {"thought": True},
        "environment": {"by": "step"}, "environment, thoughts": {"by": "step", "thought": True},
    }  # fmt: skip
    row = {"calls": "-"}
    for name, settings in kinds.items():
        try:
            talk = play(tokenizer, stop_ids=stop_ids, **settings)
        except ConfigError:
            row[name] = "refused"
        else:
            row[name] = "one" if len(talk.stretches) == 1 else "forks"
            form = talk.template.form
            row["calls"] = row["calls"] if form is None else form.name
    return row


@pytest.mark.parametrize("kind", WANTED)
def test_every_turn_follows_what_the_template_prints(kind):
    tokenizer, stop_ids = tokenizer_with(KINDS[kind])
    row = template_row(tokenizer, stop_ids)
    assert tuple(row[name] for name in COLUMNS[:-1]) == WANTED[kind]


def test_sampled_ids_stay_where_they_are_to_stay():
    tokenizer, stop_ids = tokenizer_with(KINDS["forgetful"])
    talk = play(tokenizer, by="step", thought=True, past="sampled", stop_ids=stop_ids)
    (stretch,) = talk.stretches
    text = tokenizer.decode([*stretch.prompt_ids, *stretch.ids])
    assert all(f"<think>\nthink {turn}\n</think>" in text for turn in range(3)) and talk.rewritten == 2
    assert text.count("<|im_end|>") == text.count("<|im_start|>")
    assert "</think>\n\nsay 0<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n" in text


def test_a_method_that_learns_from_one_context_refuses_a_template_that_makes_several():
    tokenizer, _ = tokenizer_with(KINDS["opened"])
    with pytest.raises(ConfigError, match="past_turns='sampled'"):
        make_turns(tokenizer, tools=Tools([double]), can_fork=False)
    make_turns(tokenizer, tools=Tools([double]), can_fork=False, past="sampled")


def test_thoughts_that_a_template_forgets_are_found_where_it_refuses_turns_without_words():
    refuses = "{% for m in messages if not m.content %}{{ raise_exception('a turn without words') }}{% endfor %}"
    tokenizer, _ = tokenizer_with(refuses + KINDS["forgetful"])
    with pytest.raises(ConfigError, match="past_turns='sampled'"):
        make_turns(tokenizer, environments=Environments(Stepping), can_fork=False)


def test_a_tokenizers_response_template_reads_calls_that_no_reader_knows():
    spelled = "{{ '@@' + call.function.name + '|' + (call.function.arguments | tojson) + '@@' }}"
    own = re.sub(r"\{\{ '<tool_call>.*?\}\}(?=\{% endfor)", lambda _: spelled, KINDS["gathered"], flags=re.DOTALL)
    tokenizer, _ = tokenizer_with(own)
    with pytest.raises(ConfigError, match="response_template"):
        make_turns(tokenizer, tools=Tools([double]))
    made = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
    call = {"open_pattern": r"@@(?P<name>\w+)\|", "close": "@@", "content": "json", "repeats": True, "transform": made}
    fields = {"content": {"close": "<|im_end|>"}, "tool_calls": call}
    tokenizer.response_template = {"start_anchor": "<|im_start|>assistant\n", "fields": fields}
    talk = play(tokenizer, calls=2)
    assert talk.answered == 4 and talk.rewritten == 0
    said = make_turns(tokenizer, tools=Tools([double])).template.read(
        'so: @@double|{"x": 2}@@', "<|im_end|>", "", {}, 0
    )
    assert (said.words, [(c.name, c.arguments) for c in said.calls]) == ("so:", [("double", {"x": 2})])
    broken = make_turns(tokenizer, tools=Tools([double])).template.read('@@double|{"x": @@', "<|im_end|>", "", {}, 0)
    assert "cannot be read" in broken.calls[0].problem


def test_what_the_template_lacks_is_said():
    said: list[str] = []
    make_turns(tokenizer_with(KINDS["blind"])[0], tools=Tools([double]), say=said.append)
    assert "does not show tools" in said[0]
    with pytest.raises(ConfigError, match="prints no answers"):
        make_turns(tokenizer_with(KINDS["deaf"])[0], tools=Tools([double]))
    strange = KINDS["gathered"].replace("<tool_call>", "<<").replace("</tool_call>", ">>")
    with pytest.raises(ConfigError, match="no reader"):
        make_turns(tokenizer_with(strange)[0], tools=Tools([double]))


def installed_templates() -> list[Path]:
    """Real templates of an installed package; none are part of this project."""
    found = importlib.util.find_spec("trl")
    folder = Path(found.origin).parent / "chat_templates" if found is not None and found.origin else None
    return [] if folder is None else sorted(p for p in folder.glob("*.jinja") if "training" not in p.name)


def table_row(path: Path) -> str:
    """A template's row of the table in the docs."""
    tokenizer, stop_ids = tokenizer_with(path.read_text(encoding="utf-8"))
    row = template_row(tokenizer, stop_ids)
    return f"| {path.stem} | {' | '.join(row[name] for name in COLUMNS)} |"


@pytest.mark.parametrize("path", installed_templates(), ids=lambda path: path.stem)
def test_real_templates(path):
    written = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {path.stem} |")]
    assert [table_row(path)] == (written or [table_row(path)])


def write_table() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    head = f"| template | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    rows = "\n".join(map(table_row, installed_templates()))
    PAGE.write_text(f"{before}{BEGIN}\n{head}\n{rows}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write_table()
