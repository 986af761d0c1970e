"""TRL's own unit tests, with strop in its place: how many pass, and of which kind the failures are.

    git clone --depth 1 https://github.com/huggingface/trl
    python -m benchmarks.trl_tests trl                     # all methods
    python -m benchmarks.trl_tests trl --files dpo sft     # some; outcomes of others are kept
    python -m benchmarks.trl_tests trl --failed            # those that failed last time; the others' outcomes are kept

Nothing is downloaded: models, tokenizers and data of the names that the tests load are made in `--folder`. Tests that
need images, an accelerator, vLLM or other packages are skipped. Failures are sorted by `kind_of`; what a user could
feel is matched with the table of trl_behaviours.py, and what no line of it explains is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.trl_behaviours import behaviour_of
from benchmarks.trl_stand_ins import make_stand_ins

STABLE = ("dpo", "sft", "grpo", "rloo", "kto", "reward")
EXPERIMENTAL = ("bco", "cpo", "gkd", "nash_md", "online_dpo", "orpo", "ppo", "prm", "xpo", "distillation")
PIECES = ("rewards", "callbacks", "data_utils", "cli_utils", "rich_progress_callback")
UNABLE = "vlm or vision or VLM or Vision or image or liger or vllm or multimodal or seq2seq or Seq2Seq or enc_dec"
"""Tests of what cannot run here, as pytest's `-k` reads it."""

PASSED, SKIPPED, PRIVATE, WORDING, SUPPORTED, SURROUNDINGS, FELT = (
    "passed", "skipped", "private internals", "wording", "supported here", "surroundings", "felt by users",
)  # fmt: skip
KINDS: tuple[tuple[str, str], ...] = (
    (SURROUNDINGS, r"couldn't connect|nor in the hub cache|LocalEntryNotFound|more than \d+ s|offline mode"),
    # Stand-in tokenizers write more, and smaller, tokens.
    (SURROUNDINGS, r"Unable to create tensor|_all_masked|test_(eval|only_train)_packingassert \d+ == \d+"),
    (PRIVATE, r"NoNamesake|has no attribute '_|does not have the attribute|type object .* has no attribute"),
    (PRIVATE, r"is (Iterable)?Dataset\(|dft_loss\(\)|with_mask_truncated_completions"),
    (PRIVATE, r"test_prepare_input_called|test_tokenize_and_process|KeyError: 'inputs'|exactly one of input_ids"),
    (SUPPORTED, r"DID NOT RAISE"),
    (WORDING, r"Regex pattern did not match|DID NOT WARN|caplog|Expected regex"),
)
"""What a failure is by its error; the first that fits."""
RESULT = Path(__file__).parent / "results" / "trl-tests.json"


def paths(checkout: Path, names: list[str]) -> list[Path]:
    """The test files of these names."""
    places = {name: f"tests/test_{name}_trainer.py" for name in STABLE}
    places |= {name: f"tests/experimental/test_{name}_trainer.py" for name in EXPERIMENTAL}
    places |= {name: f"tests/test_{name}.py" for name in PIECES}
    return [checkout / places[name] for name in names or places]


def run_file(file: Path, checkout: Path, folder: Path, failed: bool = False) -> None:
    """Run one test file, or what failed of it, in a process of its own; its outcomes replace those in the folder."""
    outcomes = folder / "outcomes" / f"{file.stem}.jsonl"
    outcomes.parent.mkdir(exist_ok=True)
    tests, kept = [str(file.relative_to(checkout))], ""
    if failed:
        lines = outcomes.read_text().splitlines(keepends=True) if outcomes.exists() else []
        tests = [line["test"] for line in map(json.loads, lines) if line["outcome"] == "failed"]
        kept = "".join(line for line in lines if json.loads(line)["outcome"] != "failed")
    if not tests:
        return
    outcomes.write_text(kept)
    here = Path(__file__).parents[1]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(here / "src"), str(here)]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "STROP_STAND_INS": str(folder),
        "STROP_OUTCOMES": str(outcomes),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.trl_plugin", "-p", "no:cacheprovider", "-q"]
    command += ["-o", "addopts=", "-W", "ignore", "--tb=short", f"--basetemp={folder / file.stem}"]
    command += ["-m", "not slow", "-k", f"not ({UNABLE})", *tests]
    log = (folder / "outcomes" / f"{file.stem}.log").open("w")
    subprocess.run(
        command, cwd=checkout, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT, check=False
    )


def read(folder: Path) -> list[dict[str, Any]]:
    """All outcomes of the folder."""
    files = sorted((folder / "outcomes").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def kind_of(outcome: dict[str, Any]) -> str:
    """What an outcome is."""
    if outcome["outcome"] != "failed":
        return str(outcome["outcome"])
    text = outcome["test"] + outcome["error"] + outcome["trace"]
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), FELT)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of TRL's repository")
    parser.add_argument("--files", nargs="*", default=[], help="names of test files, as in tests/test_NAME_trainer.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/trl-tests"), help="where models and outcomes go")
    parser.add_argument("--failed", action="store_true", help="run only the tests that failed last time")
    parser.add_argument("--count", action="store_true", help="run nothing; sort the outcomes that are there")
    parser.add_argument("--store", action="store_true", help=f"write the counts into {RESULT.name}, for the page")
    options = parser.parse_args(argv)
    checkout, folder = options.checkout.resolve(), options.folder.resolve()
    if not (folder / "hub").is_dir():
        for name, why in make_stand_ins(checkout, folder).items():
            print(f"not made: {name}: {why}")
    if not options.count:
        for file in paths(checkout, options.files):
            run_file(file, checkout, folder, options.failed)
    outcomes = read(folder)
    print(account(outcomes))
    if options.store:
        RESULT.write_text(json.dumps(dict(Counter(map(kind_of, outcomes)).most_common()), indent=1) + "\n")


def account(outcomes: list[dict[str, Any]]) -> str:
    """Counts by kind, the share that passes of what a user could feel, reasons, and what has none."""
    counts, reasons, lines = Counter(map(kind_of, outcomes)), Counter[str](), []
    for outcome in outcomes:
        if kind_of(outcome) == FELT:
            reason = behaviour_of(f"{outcome['test']}: {outcome['error']}")
            reasons[reason.what if reason else "(none)"] += 1
            if reason is None:
                lines.append(f"  {outcome['test']}: {outcome['error'].strip().splitlines()[0][:160]}")
    felt = counts[PASSED] + counts[FELT]
    return "\n".join(
        [
            *(f"{count:5} {kind}" for kind, count in counts.most_common()),
            f"{counts[PASSED]} of {felt} that a user could feel pass: {counts[PASSED] / max(felt, 1):.1%}",
            *(f"{count:5} {what}" for what, count in reasons.most_common()),
            *lines,
        ]
    )


if __name__ == "__main__":
    main()
