"""`strop check`: what it says of rows in order, of several files, and of flags in any place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.broken_files import GOOD, write_jsonl

from strop.cli import main
from strop.cli.check import FLAGS
from strop.cli.flags import Flag, all_values
from strop.methods.registry import METHODS, Method
from strop.testing.tokenizers import toy_tokenizer


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.verb)
def test_the_registry_says_what_the_trainer_says(method: Method) -> None:
    """`strop check` reads rows without torch, and so without the trainer."""
    assert method.rows == str(method.trainer().dataset_kind)


def test_what_is_said_of_rows_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = GOOD["pair"][1]
    write_jsonl(tmp_path / "a.jsonl", [pair, pair, {**pair, "rejected": pair["chosen"]}, {**pair, "prompt": "x" * 99}])
    assert main(["check", str(tmp_path / "a.jsonl")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'a.jsonl'}: 4 rows of preference data, plain text\n  3 can be learned from, 1 left out" in said
    assert "warning: 1 row is an exact copy of another (row 1 repeats row 0)" in said
    assert "  row 0, what is learned in [[ ]]:\n    prompt: the\n    chosen: [[ ant]]\n    rejected: [[" in said
    assert said.count("what is learned") == 3 and "  row 3, what" in said, "rows that are left out are not shown"
    assert main(["check", "--method", "dpo", str(tmp_path / "a.jsonl")]) == 0
    assert f"Ready: strop dpo --model MODEL --dataset {tmp_path / 'a.jsonl'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "fit", "converted"),
    [
        ("pair", "reward, dpo, orpo, cpo", "kto, bco, ppo"),
        ("chat pair", "reward, dpo, orpo, cpo", "kto, bco, ppo"),
        ("labelled", "kto, bco", "sft, gkd"),
        ("messages", "sft", "gkd"),
        ("text", "sft", None),
        ("completion", "gkd", "sft"),
        ("prompt", "ppo, grpo, rloo, online-dpo, nash-md, xpo", None),
        ("steps", "prm", "kto, bco"),
    ],
)
def test_what_rows_fit(
    shape: str, fit: str, converted: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [GOOD[shape][1]])
    assert main(["check", str(tmp_path / "a.jsonl")]) == 0
    said = capsys.readouterr().out
    assert f"These rows fit: {fit}." in said
    assert (f"they also fit: {converted}" in said) if converted else "Converted" not in said
    for verb in fit.split(", "):
        assert main(["check", str(tmp_path / "a.jsonl"), "--method", verb]) == 0


def test_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "good.jsonl", [GOOD["pair"][1]])
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": 3}])
    assert main(["check", str(tmp_path / "bad.jsonl"), str(tmp_path / "good.jsonl")]) == 2
    said = capsys.readouterr()
    assert "good.jsonl: 1 row of preference data" in said.out and "strop check: bad.jsonl: 1 of 1 rows" in said.err


def test_flags_may_stand_anywhere() -> None:
    for argv in (["a", "--method", "dpo", "b"], ["--method", "dpo", "a", "b"], ["a", "b", "--method=dpo"]):
        words: list[str] = []
        assert all_values([*argv, "--json"], FLAGS, words)["method"] == "dpo" and words == ["a", "b"]
    words = []
    assert all_values(["--json", "a"], FLAGS, words)["json"] is True and words == ["a"], "a flag takes no file"


def test_a_list_leaves_the_file_alone() -> None:
    have = (Flag("have", list[str] | str),)
    for argv, found in (
        (["--have", "reward", "a"], "reward"),
        (["a", "--have", "reward", "judge"], ["reward", "judge"]),
    ):
        words: list[str] = []
        assert all_values(argv, have, words) == {"have": found} and words == ["a"]


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--method", "dpo"], "No file is named"),
        (["a.jsonl", "--method", "dop"], "choose one of sft, reward, dpo"),
        (["a.jsonl", "--metod", "dpo"], "--metod is not a flag. Did you mean 'method'?"),
        (["a.jsonl"], "'a.jsonl': no such file"),
    ],
)
def test_wrong_arguments(argv: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *argv]) == 2
    assert wanted in capsys.readouterr().err


def test_a_mapping_and_evaluation_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, other = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    row = {"the_question": "which of them?", "chosen": "a", "rejected": "b"}
    train.write_text(json.dumps(row))
    other.write_text(json.dumps(row | {"chosen": "c"}))
    assert main(["check", str(train), "--method", "dpo"]) == 2
    assert 'Set columns="prompt=the_question" (on the command line --columns prompt=the_question)' in (
        capsys.readouterr().err
    )
    mapping = "prompt=the_question"
    assert main(["check", str(train), "--method", "dpo", "--columns", mapping, "--eval", str(other)]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 prompts of the evaluation rows stand in the training rows too" in said
    assert f"--dataset {train} --columns {mapping}" in said


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer that has a chat template, and no weights."""
    folder = tmp_path_factory.mktemp("model")
    toy_tokenizer("chatml").save_pretrained(folder)
    return str(folder)


def test_with_a_model_rows_are_shown_by_their_tokens(
    chat_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "owl"}, {"role": "assistant", "content": "ibis"}]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": turns[:1], "completion": turns[1:]}] * 4)
    assert main(["check", str(tmp_path / "a.jsonl"), "--method", "sft", "--model", chat_model, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)[0]["rows"]
    assert [row["row"] for row in rows] == [0, 1, 2]
    parts = rows[0]["parts"]
    assert "owl" in parts["prompt"][0][0] and not any(learned for _, learned in parts["prompt"])
    assert parts["completion"][0][0].startswith("ibis<|im_end|>") and parts["completion"][0][1] is True


def test_plain_text_for_a_chat_model_is_said(
    chat_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "owl", "completion": " ibis"}])
    assert main(["check", str(tmp_path / "a.jsonl"), "--method", "sft", "--model", chat_model]) == 0
    said = capsys.readouterr().out
    assert "the tokenizer's chat template is not applied" in said and "completion: [[ ibis" in said


def test_json_and_strictness_are_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = GOOD["pair"][1]
    swapped = {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}
    write_jsonl(tmp_path / "good.jsonl", [pair])
    write_jsonl(tmp_path / "swapped.jsonl", [pair, swapped])
    write_jsonl(tmp_path / "bad.jsonl", [{"prompt": 3}])
    files = [str(tmp_path / name) for name in ("good.jsonl", "swapped.jsonl", "bad.jsonl")]
    assert main(["check", *files, "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [each["status"] for each in found] == ["fit", "warnings", "unusable"] and not err
    assert found[0]["rows"][0]["parts"]["chosen"] == [[pair["chosen"], True]]
    assert "1 of 1 rows cannot be used" in found[2]["error"]
    assert [main(["check", file, "--strict"]) for file in files] == [0, 1, 2]
    assert main(["check", files[0], "--eval", files[0], "--strict"]) == 1
    assert "the evaluation rows are the training rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Name it", "input": "a bird", "chosen": "owl", "rejected": "ox"}, "Name it\n\na bird"),
        ({"system": "Be brief", "question": "A bird?", "chosen": "owl", "rejected": "ox"}, "system: Be brief"),
        (
            {
                "conversations": [{"from": "human", "value": "A bird?"}],
                "chosen": {"from": "gpt", "value": "owl"},
                "rejected": {"from": "gpt", "value": "ox"},
            },
            "user: A bird?",
        ),
    ],
)
def test_public_preference_layouts_keep_their_prompts(
    row: dict[str, object], prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert main(["check", str(tmp_path / "a.jsonl"), "--method", "dpo", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)[0]["rows"][0]["parts"]
    assert prompt in parts["prompt"][0][0] and "owl" in parts["chosen"][0][0]
