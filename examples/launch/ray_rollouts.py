"""GRPO whose completions and rewards are made by actors of a Ray cluster.

On the machine that trains:      ray start --head --num-gpus 1
On every other machine:          ray start --address TRAINER:6379      (strop must be installed there)
Then, on the machine that trains: RAY_ADDRESS=auto python examples/launch/ray_rollouts.py

Without RAY_ADDRESS a cluster of this machine's cores is started, and ended with the script.
"""

from __future__ import annotations

import argparse

from datasets import Dataset

from strop import GRPOConfig, GRPOTrainer
from strop.rewards import RayReward


def short_words(completions: list[str]) -> list[float]:
    """What stands for a reward that takes long: a judge, a compiler, a simulator."""
    return [-sum(map(len, words)) / max(1, len(words)) for words in map(str.split, completions)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max_steps", type=int, default=10)
    options = parser.parse_args()
    args = GRPOConfig(
        output_dir="runs/ray",
        engine="ray",
        ray_workers=options.workers,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=32,
        max_steps=options.max_steps,
    )
    reward = RayReward(short_words, workers=options.workers, num_cpus=0)
    rows = Dataset.from_list([{"prompt": f"Describe the number {n} in a few words."} for n in range(64)])
    GRPOTrainer(options.model, reward_funcs=reward, args=args, train_dataset=rows).train()


if __name__ == "__main__":
    main()
