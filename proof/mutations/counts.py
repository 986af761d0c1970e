"""Bugs of how rows and numbers are put together: whole groups, and means over all rows and ranks."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="batch-must-be-divisible",
        promises=(20,),
        history="Batch settings that make no whole groups were an error without a proposal (seven threads on TRL's GRPO).",
        edits=(Edit("online/batches.py", "else math.ceil(completions / group)", "else completions // group"),),
        tests=("tests/online/test_batch_settings.py",),
    ),
    Mutation(
        name="groups-torn-between-steps",
        promises=(20,),
        history="Completions were dealt out to steps one by one, so a group was split and its baseline was of another step.",
        edits=(
            Edit(
                "online/batches.py",
                "steps[min(position // sizes.prompts, sizes.fresh_steps - 1)].append(tree)",
                "steps[position % sizes.fresh_steps].append(tree)",
            ),
        ),
        tests=("tests/online/test_batch_settings.py",),
    ),
    Mutation(
        name="metrics-are-means-of-means",
        promises=(22,),
        history="Logged metrics were means of micro-batch means: rows in short micro-batches counted more.",
        edits=(
            Edit(
                "engine/metrics.py",
                '    "sum": lambda a, b: [a[0] + b[0], a[1] + b[1]],\n',
                '    "sum": lambda a, b: [(a[0] / a[1] + b[0] / b[1]) / 2, 1] if a[1] and b[1] else [a[0] + b[0], a[1] + b[1]],\n',
            ),
        ),
        tests=("tests/engine/test_metrics.py::test_rows_of_short_steps_do_not_count_more",),
        quick=True,
    ),
    Mutation(
        name="evaluation-is-a-mean-of-batch-means",
        promises=(22, 1),
        history="eval_loss was the mean of batch losses, so it changed with the evaluation batch size (transformers, TRL).",
        edits=(
            Edit(
                "engine/evaluation.py",
                "+ term.weight * wide(term.values.detach().sum())\n",
                "+ term.weight * wide(term.values.detach().mean())\n",
            ),
            Edit(
                "engine/evaluation.py",
                "self._counts.get(name, 0.0) + number for",
                "self._counts.get(name, 0.0) + 1.0 for",
            ),
        ),
        tests=("tests/engine/test_oracle.py::test_sft_is_the_token_mean",),
    ),
    Mutation(
        name="metrics-of-one-rank",
        promises=(22,),
        history="The first rank logged its own metrics as if they were those of the run.",
        edits=(Edit("engine/metrics.py", "parts = gather_numbers(told, world_size)\n", "parts = [told]\n"),),
        tests=("tests/engine/test_metrics.py::test_all_ranks_are_counted",),
    ),
    Mutation(
        name="reward-is-a-mean-of-group-means",
        promises=(22,),
        history="The logged reward averaged group means, so a completion whose reward abstained made its neighbours count more.",
        edits=(
            Edit(
                "online/groups.py",
                '        add(metrics, "reward", float(known.sum()), float(known.numel()))\n',
                '        add(metrics, "reward", float(known.mean()) if known.numel() else 0.0, 1.0)\n',
            ),
        ),
        tests=("tests/engine/test_truthful_metrics.py",),
    ),
)
