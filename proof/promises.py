"""What strop promises."""

from __future__ import annotations

from proof.promise import Promise

PROMISES: tuple[Promise, ...] = (
    Promise(
        1,
        "Geometry invariance",
        "The gradient of an optimizer step depends on its rows alone: not on batch size, accumulation, processes, "
        "order or layout.",
        further=("tests/engine/test_geometry_runs.py",),
    ),
    Promise(
        2,
        "One loss, one definition",
        "Every loss equals its formula in value and gradient, and every fast path equals the plain one.",
        further=("tests/losses/test_gradcheck.py", "tests/losses/test_dpo.py", "tests/testing/test_check.py"),
    ),
    Promise(
        3,
        "No ignored option",
        "Every setting changes something or is refused; unknown names are errors with the nearest one.",
        further=("tests/options",),
    ),
    Promise(
        4,
        "Exactly the asked-for tokens are learned",
        "The first token of an answer and its end are learned, once; prompt, padding and tool answers are not.",
        further=("tests/data/test_stops.py",),
    ),
    Promise(
        5,
        "No silent no-learning",
        "What cannot be learned from is left out, counted and named; a step without learning raises a named warning, "
        "and no NaN reaches the weights.",
        further=("tests/engine/test_max_length.py",),
    ),
    Promise(
        6,
        "Exact resume",
        "A run that was stopped and resumed is the run that was not: weights, optimizer, next rows, samples, metrics.",
        further=("tests/engine/test_resume.py", "tests/testing/test_check.py"),
    ),
    Promise(
        7,
        "Token in, token out",
        "The sampled ids are the ids trained on; no text becomes ids between sampling and loss.",
        further=("tests/rollout/test_native.py",),
    ),
    Promise(
        8,
        "The reference is right",
        "It is the starting model, whichever way it is held, does not move, and has no dropout.",
        further=("tests/testing/test_check.py",),
    ),
    Promise(
        9,
        "Log-probs free of padding, packing and dropout",
        "A row has the same log-probs and scores alone, padded, packed or in a tree.",
        further=("tests/model/test_heads.py",),
    ),
    Promise(
        10,
        "Data are checked before anything loads",
        "Broken files are answered with file, row, column, cause and fix, all problems at once, without torch.",
        further=("tests/data/test_large_files.py", "tests/data/test_load.py", "tests/cli"),
    ),
    Promise(
        11,
        "Crash-safe checkpoints",
        "A checkpoint is complete or absent, on disk before its name says so; damaged ones are passed over by name.",
    ),
    Promise(
        12,
        "Rewards cannot break the run",
        "Rewards are called in the script's own process, with its state. What they return or raise, and Python code "
        "that runs too long, is contained, counted, and costs its own row only. What only a process of its own "
        "survives (hangs in native code, a crash) ends with a named error, or is contained: reward_isolation=True.",
        further=("tests/test_time_limit.py", "tests/test_event_loop.py"),
    ),
    Promise(
        13,
        "Adapters are never merged in place",
        "However often weights are synced or sampled from, the weights below an adapter keep their bits.",
    ),
    Promise(
        14,
        "Estimators proved by enumeration",
        "The expected gradient of every KL and policy-gradient estimator, summed over all completions.",
    ),
    Promise(
        15,
        "Sampler and trainer share one distribution",
        "Equal weights give ratio 1 under temperature, top-k, top-p, min-p and repetition penalty.",
    ),
    Promise(
        16,
        "KTO and BCO at any batch shape",
        "All label patterns of 1 to 9 rows: no pair with itself, no NaN, equal to plain Python.",
        further=("tests/methods/test_label_patterns.py",),
    ),
    Promise(
        17,
        "All fifteen are first-class",
        "Fifteen trainers with the same features, each learns a task; nothing public goes away.",
        further=("tests/testing/test_check.py", "tests/scripts", "tests/methods/test_matrix.py"),
    ),
    Promise(
        18,
        "Trustworthy PPO",
        "GAE as defined, the score on the last real token, one whitening, a critic that is saved and resumed.",
        further=("tests/learning/test_learning.py",),
    ),
    Promise(
        19,
        "Never a silent hang",
        "A server that stalls, fails or dies, and a reward that never returns, end in a named error in bounded time.",
        further=(
            "tests/rollout/test_vllm_engine.py",
            "tests/rollout/test_vllm_runs.py",
            "tests/rollout/test_own_process.py",
            "tests/rewards/test_runs.py",
        ),
    ),
    Promise(
        20,
        "Batch settings by meaning",
        "Any combination runs with whole groups in every step, and says so where it rounds.",
    ),
    Promise(
        21,
        "No full [B, T, V] tensor, and a memory plan to believe",
        "Logits exist for scored tokens only, chunk by chunk, forward and backward; what a step takes is what `strop "
        "plan` says, within 15 %.",
        further=("tests/model/test_head.py",),
    ),
    Promise(
        22,
        "Truthful, explained metrics",
        "Logged numbers follow from saved rows, over all rows and ranks; each has an entry in the glossary.",
        further=("tests/engine/test_resume.py",),
    ),
    Promise(
        23,
        "What the model saw is saved",
        "With the saved tokenizer, template and weights, rows are the same ids and answers are the same.",
    ),
    Promise(
        24,
        "Fast start",
        "A second run makes no tokenizer call, edited data do; ranks tokenise once; `import strop` loads no framework.",
        further=("tests/data/test_dataset.py", "tests/cli"),
    ),
    Promise(
        25,
        "Upgrades do not break you",
        "Public names and settings stay, the files of every release are taken, one step of every method was run under "
        "the oldest and newest supported packages, and private names of others are few and listed with a reason.",
        further=("tests/benchmarks/test_support.py",),
        open=("torch before 2.13, of which there is no CPU build to run here",),
    ),
    Promise(
        26,
        "One precision for policy and reference",
        "At the first step policy and reference are equal: full training or an adapter, float32, bfloat16 or float16, "
        "scored at once, remembered or computed before (a sample of the product here, the whole in `make slow`).",
        further=("tests/engine/test_step_zero.py",),
    ),
    Promise(
        27,
        "A layout is checked past everything that the config bounds",
        "Windows, chunks, scaling of positions: a layout is used where rows have shown that it changes nothing, an "
        "asked-for one like a chosen one, and each row is as if alone.",
    ),
    Promise(
        28,
        "A conversation is what its template writes",
        "With tools and environments the ids that are trained on are the ids that were sampled, in the context that "
        "the chat template writes; a template that rewrites the past forks the trajectory, which counts once.",
        further=("tests/agents", "tests/rollout/test_vllm_training.py"),
    ),
    Promise(
        29,
        "What leaves scores the same elsewhere",
        "Saved reward models, heads, merged adapters and GGUF files give the same scores in transformers, PEFT and a "
        "reader of GGUF.",
        further=("tests/export",),
        open=("vLLM and Ollama as readers",),
    ),
    Promise(
        30,
        "Sampled code is hostile",
        "A program that a policy wrote changes nothing outside, ends in time, and cannot forge its verdict.",
        further=("tests/rewards/sandbox",),
    ),
    Promise(
        31,
        "A folder knows its run",
        "A new run in a used folder, two at once, a finished run that is resumed, another run's checkpoint, a renamed "
        "or damaged one: each is refused or harmless.",
    ),
    Promise(
        32,
        "An accelerator's path is proved before it is trusted",
        "Attention and head of a GPU equal the plain ones on emulated operators, and a start-up test with a bound of a "
        "few eps finds a fault in them; layers that are compiled, or computed by other kernels, are held to the plain "
        "ones; a step waits for the device once.",
        further=("tests/engine/test_determinism.py",),
        open=("everything on a GPU itself",),
    ),
    Promise(
        33,
        "What a script sets is what happens",
        "A hook of transformers or TRL is honoured or refused; optimizers hold the trained weights; rewards see the "
        "script's own state.",
    ),
    Promise(
        34,
        "Every processor passes",
        "Losses and steps come out the same with the instructions of any processor, and tests state their results by "
        "construction.",
        further=("tests/engine/test_processors.py",),
    ),
)
