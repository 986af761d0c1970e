"""What strop promises, and the tests that stand for each promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One promise. The tests of its mutations lie within `tests`."""

    number: int
    title: str
    text: str
    tests: tuple[str, ...]  # pytest ids: files, or tests within them
    open: tuple[str, ...] = ()  # what it says and no test covers yet


L = "tests/losses/"

PROMISES: tuple[Promise, ...] = (
    Promise(
        1,
        "Geometry invariance",
        "The gradient of an optimizer step depends on its rows alone: not on batch size, accumulation, processes, "
        "order or layout.",
        (
            "tests/engine/test_geometry.py",
            "tests/engine/test_geometry_runs.py",
            "tests/engine/test_router_share.py",
            "tests/online/test_pieces.py",
            "tests/online/test_in_parts.py",
            "tests/engine/test_windows.py",
            "tests/engine/test_step.py",
            "tests/engine/test_sharded.py",
            "tests/model/test_zero3.py",
            "tests/engine/test_collectives.py",
            "tests/engine/test_oracle.py",
            f"{L}test_reduce.py",
            "tests/testing/test_check.py",
        ),
    ),
    Promise(
        2,
        "One loss, one definition",
        "Every loss equals its formula in value and gradient, and every fast path equals the plain one.",
        (
            f"{L}test_vectors_offline.py",
            f"{L}test_vectors_online.py",
            f"{L}test_gradcheck.py",
            f"{L}test_dpo.py",
            f"{L}test_cpo.py",
            f"{L}test_jsd.py",
            f"{L}test_wpo.py",
            f"{L}test_numerics.py",
            f"{L}test_enumeration.py",
            "tests/engine/test_oracle.py",
            "tests/engine/test_reference_scores.py",
            "tests/model/test_forward.py",
            "tests/model/test_head.py",
            "tests/model/test_head_card.py",
            "tests/testing/test_check.py",
        ),
    ),
    Promise(
        3,
        "No ignored option",
        "Every setting changes something or is refused; unknown names are errors with the nearest one.",
        (
            "tests/engine/test_adalora.py",
            "tests/engine/test_adapter_rate.py",
            "tests/settings/test_schema.py",
            "tests/engine/test_oracle.py",
            f"{L}test_vectors_offline.py",
            f"{L}test_vectors_online.py",
            f"{L}test_jsd.py",
            "tests/scripts/test_config_fields.py",
            "tests/scripts/test_earlier_settings.py",
            "tests/settings/test_devices.py",
            "tests/settings/test_plain_subclass.py",
            "tests/engine/test_fitting.py",
            "tests/online/test_turn_settings.py",
            "tests/options",
        ),
    ),
    Promise(
        4,
        "Exactly the asked-for tokens are learned",
        "The first token of an answer and its end are learned, once; prompt, padding and tool answers are not.",
        (
            "tests/data/test_trees.py",
            "tests/data/test_truncate.py",
            "tests/data/test_properties.py",
            "tests/data/test_stops.py",
            "tests/data/test_flags_and_calls.py",
            "tests/engine/test_rows.py",
            "tests/rewards/test_model_reward.py",
            "tests/rewards/test_reward_tokens.py",
            "tests/agents/test_turns.py",
            "tests/engine/test_missing_eos.py",
            "tests/engine/test_oracle.py",
        ),
    ),
    Promise(
        5,
        "No silent no-learning",
        "What cannot be learned from is left out, counted and named; a step without learning raises a named warning, "
        "and no NaN reaches the weights.",
        (
            "tests/online/test_sampler_check.py",
            "tests/watch/test_alarms.py",
            f"{L}test_advantages.py",
            f"{L}test_cpo.py",
            f"{L}test_numerics.py",
            f"{L}test_reduce.py",
            "tests/data/test_dataset.py",
            "tests/data/test_truncate.py",
            "tests/data/test_properties.py",
            "tests/engine/test_max_length.py",
            "tests/rewards/test_contract.py",
        ),
    ),
    Promise(
        6,
        "Exact resume",
        "A run that was stopped and resumed is the run that was not: weights, optimizer, next rows, samples, metrics.",
        (
            "tests/engine/test_rehearsal.py",
            "tests/engine/test_resume.py",
            "tests/engine/test_resume_processes.py",
            "tests/engine/test_resume_ranks.py",
            "tests/online/test_ahead.py",
            "tests/online/test_ahead_methods.py",
            "tests/methods/test_ppo.py",
            "tests/engine/test_windows.py",
            "tests/testing/test_check.py",
        ),
    ),
    Promise(
        7,
        "Token in, token out",
        "The sampled ids are the ids trained on; no text becomes ids between sampling and loss.",
        ("tests/online/test_token_in_token_out.py", "tests/agents/test_turns.py", "tests/rollout/test_native.py"),
    ),
    Promise(
        8,
        "The reference is right",
        "It is the starting model, whichever way it is held, does not move, and has no dropout.",
        (
            "tests/engine/test_shared_weights.py",
            "tests/engine/test_several_adapters.py",
            "tests/engine/test_eight_bit.py",
            "tests/engine/test_script_seams.py",
            "tests/model/test_reference.py",
            "tests/engine/test_reference_scores.py",
            "tests/testing/test_check.py",
        ),
    ),
    Promise(
        9,
        "Log-probs free of padding, packing and dropout",
        "A row has the same log-probs and scores alone, padded, packed or in a tree.",
        (
            "tests/model/test_dropout.py",
            "tests/model/test_recurrent.py",
            "tests/model/test_attention.py",
            "tests/model/test_attention_cuda.py",
            "tests/model/test_layout.py",
            "tests/model/test_forest.py",
            "tests/engine/test_shared_tokens.py",
            "tests/model/test_select.py",
            "tests/model/test_forward.py",
            "tests/model/test_heads.py",
            "tests/model/test_reference.py",
            "tests/rewards/test_model_reward.py",
            "tests/rewards/test_language_model_judge.py",
            "tests/rollout/test_native.py",
            "tests/rollout/test_transformers_engine.py",
            "tests/engine/test_oracle.py",
        ),
    ),
    Promise(
        10,
        "Data are checked before anything loads",
        "Broken files are answered with file, row, column, cause and fix, all problems at once, without torch.",
        (
            "tests/data/test_checks.py",
            "tests/data/test_broken_files.py",
            "tests/data/test_properties.py",
            "tests/data/test_large_files.py",
            "tests/data/test_truncate.py",
            "tests/data/test_load.py",
            "tests/data/test_arrow.py",
            "tests/data/test_layouts.py",
            "tests/data/test_padding.py",
            "tests/cli",
            "tests/engine/test_broken_files.py",
        ),
    ),
    Promise(
        11,
        "Crash-safe checkpoints",
        "A checkpoint is complete or absent, on disk before its name says so; damaged ones are passed over by name.",
        (
            "tests/engine/test_crash.py",
            "tests/engine/test_checkpoint.py",
            "tests/engine/test_resume.py",
            "tests/engine/test_resume_ranks.py",
            "tests/engine/test_zero_checkpoints.py",
        ),
    ),
    Promise(
        12,
        "Rewards cannot break the run",
        "Rewards are called in the script's own process, with its state. What they return or raise, and Python code "
        "that runs too long, is contained, counted, and costs its own row only. What only a process of its own "
        "survives (hangs in native code, a crash) ends with a named error, or is contained: reward_isolation=True.",
        (
            "tests/rewards/test_contract.py",
            "tests/rewards/test_invoke.py",
            "tests/rewards/test_time_limit.py",
            "tests/rewards/test_event_loop.py",
            "tests/rewards/test_script_state.py",
            "tests/rewards/test_watchdog.py",
            "tests/rewards/test_isolation.py",
            "tests/rewards/test_scorer.py",
            "tests/rewards/sandbox/test_judging.py",
            "tests/rewards/sandbox/test_places.py",
            "tests/engine/test_metrics.py",
            "tests/engine/test_missing_eos.py",
        ),
    ),
    Promise(
        13,
        "Adapters are never merged in place",
        "However often weights are synced or sampled from, the weights below an adapter keep their bits.",
        ("tests/rollout/test_weight_syncs.py",),
    ),
    Promise(
        14,
        "Estimators proved by enumeration",
        "The expected gradient of every KL and policy-gradient estimator, summed over all completions.",
        (f"{L}test_enumeration.py", f"{L}test_advantages.py", "tests/testing/test_check.py"),
    ),
    Promise(
        15,
        "Sampler and trainer share one distribution",
        "Equal weights give ratio 1 under temperature, top-k, top-p, min-p and repetition penalty.",
        (
            "tests/online/test_sampled_distribution.py",
            "tests/online/test_ahead.py",
            "tests/online/test_ahead_methods.py",
            "tests/online/test_ahead_by_hand.py",
            "tests/rollout/test_own_process.py",
            "tests/rollout/test_on_a_card.py",
            "tests/rollout/test_cast_weights.py",
            "tests/rollout/test_native.py",
            "tests/rollout/test_beginnings.py",
            "tests/model/test_forward.py",
        ),
    ),
    Promise(
        16,
        "KTO and BCO at any batch shape",
        "All label patterns of 1 to 9 rows: no pair with itself, no NaN, equal to plain Python.",
        (
            "tests/methods/test_label_patterns.py",
            "tests/engine/test_geometry.py",
            "tests/engine/test_resume_processes.py",
            f"{L}test_kto.py",
            f"{L}test_bco.py",
            f"{L}test_reduce.py",
            "tests/data/test_partners.py",
        ),
    ),
    Promise(
        17,
        "All fifteen are first-class",
        "Fifteen trainers with the same features, each learns a task; nothing public goes away.",
        (
            "tests/test_public_api.py",
            "tests/testing/test_check.py",
            "tests/learning/test_learning.py",
            "tests/rewards/test_reward_tokens.py",
            "tests/scripts",
            "tests/methods/test_matrix.py",
        ),
    ),
    Promise(
        18,
        "Trustworthy PPO",
        "GAE as defined, the score on the last real token, one whitening, a critic that is saved and resumed.",
        (
            f"{L}test_ppo.py",
            "tests/methods/test_ppo.py",
            "tests/online/test_ahead_by_hand.py",
            "tests/online/test_pieces.py",
            "tests/learning/test_learning.py",
        ),
    ),
    Promise(
        19,
        "Never a silent hang",
        "A server that stalls, fails or dies, and a reward that never returns, end in a named error in bounded time.",
        (
            "tests/engine/test_ranks_together.py",
            "tests/test_http_client.py",
            "tests/rollout/test_vllm_server.py",
            "tests/rollout/test_vllm_engine.py",
            "tests/rollout/test_vllm_runs.py",
            "tests/rollout/test_own_process.py",
            "tests/rewards/test_isolation.py",
            "tests/rewards/test_watchdog.py",
            "tests/rewards/test_runs.py",
            "tests/engine/test_lost_rank.py",
        ),
    ),
    Promise(
        20,
        "Batch settings by meaning",
        "Any combination runs with whole groups in every step, and says so where it rounds.",
        ("tests/online/test_batch_settings.py",),
    ),
    Promise(
        21,
        "No full [B, T, V] tensor, and a memory plan to believe",
        "Logits exist for scored tokens only, chunk by chunk, forward and backward; what a step takes is what `strop "
        "plan` says, within 15 %.",
        (
            "tests/model/test_forward.py",
            "tests/model/test_head.py",
            f"{L}test_jsd.py",
            "tests/engine/test_memory.py",
            "tests/plan/test_memory.py",
        ),
    ),
    Promise(
        22,
        "Truthful, explained metrics",
        "Logged numbers follow from saved rows, over all rows and ranks; each has an entry in the glossary.",
        (
            "tests/engine/test_truthful_metrics.py",
            "tests/engine/test_metrics.py",
            "tests/engine/test_step.py",
            "tests/engine/test_collectives.py",
            "tests/engine/test_oracle.py",
            "tests/engine/test_resume.py",
            "tests/engine/test_resume_processes.py",
            f"{L}test_metrics.py",
            "tests/report/test_glossary.py",
            "tests/testing/test_check.py",
        ),
    ),
    Promise(
        23,
        "What the model saw is saved",
        "With the saved tokenizer, template and weights, rows are the same ids and answers are the same.",
        ("tests/engine/test_saved_model.py", "tests/engine/test_beside_adapter.py", "tests/methods/test_ppo.py"),
    ),
    Promise(
        24,
        "Fast start",
        "A second run makes no tokenizer call, edited data do; ranks tokenise once; `import strop` loads no framework.",
        (
            "tests/data/test_store.py",
            "tests/data/test_dataset.py",
            "tests/data/test_checks.py",
            "tests/cli",
            "tests/engine/test_fast_start.py",
            "tests/test_imports.py",
        ),
    ),
    Promise(
        25,
        "Upgrades do not break you",
        "Public names and settings stay, the files of every release are taken, one step of every method was run under "
        "the oldest and newest supported packages, and private names of others are few and listed with a reason.",
        (
            "tests/test_private_names.py",
            "tests/test_public_api.py",
            "tests/settings/test_released_configs.py",
            "tests/benchmarks/test_support.py",
        ),
        ("torch before 2.13, of which there is no CPU build to run here",),
    ),
    Promise(
        26,
        "One precision for policy and reference",
        "At the first step policy and reference are equal: full training or an adapter, float32, bfloat16 or float16, "
        "scored at once, remembered or computed before (a sample of the product here, the whole in `make slow`).",
        ("tests/engine/test_step_zero.py", "tests/engine/test_reference_scores.py"),
    ),
    Promise(
        27,
        "A layout is checked past everything that the config bounds",
        "Windows, chunks, scaling of positions: a layout is used where rows have shown that it changes nothing, an "
        "asked-for one like a chosen one, and each row is as if alone.",
        ("tests/model/test_select.py", "tests/model/test_rope.py", "tests/engine/test_layout_confirmed.py"),
    ),
    Promise(
        28,
        "A conversation is what its template writes",
        "With tools and environments the ids that are trained on are the ids that were sampled, in the context that "
        "the chat template writes; a template that rewrites the past forks the trajectory, which counts once.",
        (
            "tests/agents",
            "tests/online/test_forks.py",
            "tests/online/test_turn_credit.py",
            "tests/online/test_agent_program.py",
            "tests/rollout/test_vllm_training.py",
        ),
    ),
    Promise(
        29,
        "What leaves scores the same elsewhere",
        "Saved reward models, heads, merged adapters and GGUF files give the same scores in transformers, PEFT and a "
        "reader of GGUF.",
        (
            "tests/model/test_heads.py",
            "tests/engine/test_saved_scores.py",
            "tests/model/test_headed.py",
            "tests/model/test_dropout.py",
            "tests/export",
        ),
        ("vLLM and Ollama as readers",),
    ),
    Promise(
        30,
        "Sampled code is hostile",
        "A program that a policy wrote changes nothing outside, ends in time, and cannot forge its verdict.",
        ("tests/rewards/sandbox",),
    ),
    Promise(
        31,
        "A folder knows its run",
        "A new run in a used folder, two at once, a finished run that is resumed, another run's checkpoint, a renamed "
        "or damaged one: each is refused or harmless.",
        (
            "tests/engine/test_run_identity.py",
            "tests/engine/test_reference_scores.py",
            "tests/online/test_best_checkpoint.py",
        ),
    ),
    Promise(
        32,
        "An accelerator's path is proved before it is trusted",
        "Attention and head of a GPU equal the plain ones on emulated operators, and a start-up test with a bound of a "
        "few eps finds a fault in them; layers that are compiled, or computed by other kernels, are held to the plain "
        "ones; a step waits for the device once.",
        (
            "tests/model/test_attention_cuda.py",
            "tests/model/test_attention.py",
            "tests/model/test_head_card.py",
            "tests/model/test_compiled_layers.py",
            "tests/engine/test_fast_layers.py",
            "tests/engine/test_offloading.py",
            "tests/settings/test_devices.py",
            "tests/engine/test_waits.py",
            "tests/engine/test_determinism.py",
            "tests/methods/test_policy_gradient.py",
        ),
        ("everything on a GPU itself",),
    ),
    Promise(
        33,
        "What a script sets is what happens",
        "A hook of transformers or TRL is honoured or refused; optimizers hold the trained weights; rewards see the "
        "script's own state.",
        (
            "tests/engine/test_overrides.py",
            "tests/engine/test_script_seams.py",
            "tests/rewards/test_script_state.py",
        ),
    ),
    Promise(
        34,
        "Every processor passes",
        "Losses and steps come out the same with the instructions of any processor, and tests state their results by "
        "construction.",
        ("tests/engine/test_processors.py", "tests/options/test_allowed_values.py"),
    ),
)
