"""What strop promises to those who meet it with files, scripts, machines and engines of their own."""

from __future__ import annotations

from proof.promise import Promise

AT_LARGE: tuple[Promise, ...] = (
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
            "tests/online/test_conversations_ahead.py",
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
