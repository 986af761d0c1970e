"""Bugs that only some architectures show: windows, positions that depend on the row's length, odd stacks."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="nothing-is-tried-beyond-the-windows",
        promises=(9, 27),
        history="PhiMoE's window stands in a mask that a flat row does not get: six tokens did not show it, 3 nats off.",
        edits=(Edit("model/select.py", "    return why_not_far(decoder_of(inner))\n", "    return None\n"),),
        tests=("tests/model/test_select.py::test_what_shows_far_apart_only_is_seen_on_a_twin",),
    ),
    Mutation(
        name="real-rows-are-not-looked-at",
        promises=(9, 27),
        history="A layout was settled by a small example alone; what no config names was believed.",
        edits=(
            Edit("model/select.py", "    if difference <= _TOLERANCE[_precision(inner, device)]:\n", "    if True:\n"),
        ),
        tests=("tests/engine/test_layout_confirmed.py::test_rows_that_leak_are_padded_from_the_first_batch_on",),
    ),
    Mutation(
        name="longest-row-chooses-the-factors",
        promises=(9, 27),
        history="longrope and dynamic rope took their factors from the longest row of the batch (1.9 nats).",
        edits=(
            Edit(
                "model/rope.py",
                "    for length, own in zip(lengths, position_ids.expand(len(lengths), -1), strict=True):\n",
                "    lengths = [max(lengths)] * len(lengths)\n"
                "    for length, own in zip(lengths, position_ids.expand(len(lengths), -1), strict=True):\n",
            ),
        ),
        tests=("tests/model/test_rope.py::test_short_and_long_neighbours_change_nothing",),
    ),
    Mutation(
        name="padding-on-the-left-is-seen",
        promises=(9,),
        history="Rows of BART, RWKV and RecurrentGemma were sampled beside longer ones: other log-probs than alone.",
        edits=(
            Edit(
                "rollout/transformers_engine.py",
                "        fits = fits and not (equal_lengths and last and last[-1].length != row.length)\n",
                "",
            ),
        ),
        tests=(
            "tests/rollout/test_transformers_engine.py::"
            "test_padding_and_caches_that_change_numbers_are_found_and_avoided[bart]",
        ),
    ),
    Mutation(
        name="sampler-is-believed",
        promises=(9, 5),
        history="Ratios at the first step were off by nats, and only a column of the log that nobody reads said so.",
        edits=(
            Edit(
                "online/sampler_check.py",
                '    if mean > ROUNDING["half" if mixed or computed in CLOSER else "wide"]:\n',
                "    if False:\n",
            ),
        ),
        tests=("tests/online/test_sampler_check.py::test_every_method_tells_a_true_engine_from_another[grpo]",),
    ),
    Mutation(
        name="dropout-is-saved-as-zero",
        promises=(7, 29),
        history="disable_dropout left zeros in the saved config: whoever trained on had no dropout, unasked.",
        edits=(Edit("model/dropout.py", "            cleared.append((config, name, getattr(config, name)))\n", ""),),
        tests=("tests/model/test_dropout.py::test_what_was_switched_off_is_saved_as_it_was",),
    ),
    Mutation(
        name="rescaled-weights-are-saved",
        promises=(7, 29),
        history="RWKV halves weights in evaluation; a checkpoint after an evaluation kept them and was another model.",
        edits=(Edit("model/saving.py", "            _unscale(module)\n", "            pass\n"),),
        tests=("tests/model/test_dropout.py::test_weights_that_evaluation_divides_are_saved_whole",),
    ),
    Mutation(
        name="eight-bit-evaluation-is-another-model",
        promises=(8,),
        history="8-bit layers round their inputs in evaluation and not in training: DPO began at 0.6446, not at ln 2.",
        edits=(
            Edit(
                "model/load.py",
                "            module.train = functools.partial(_stays, module)  # type: ignore[method-assign]\n",
                "",
            ),
        ),
        tests=("tests/engine/test_eight_bit.py::test_training_and_evaluation_share_their_numbers",),
    ),
    Mutation(
        name="adalora-keeps-every-rank",
        promises=(3,),
        history="Nobody called update_and_allocate: AdaLoRA trained with all its ranks, whatever its budget.",
        edits=(
            Edit(
                "engine/adalora.py",
                "        self.policy.base_model.update_and_allocate(state.global_step)\n",
                "        pass\n",
            ),
        ),
        tests=("tests/engine/test_adalora.py::test_the_budget_is_allocated_and_the_reference_is_the_base",),
    ),
    Mutation(
        name="adalora-without-its-orthogonal-term",
        promises=(3,),
        history="PEFT adds the term to a loss that the model returns itself; trainers with losses of their own left it out.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "                share = share + orthogonality(self.policy) / len(work.parts)\n",
                "                share = share + 0 * orthogonality(self.policy) / len(work.parts)\n",
            ),
        ),
        tests=("tests/engine/test_adalora.py::test_the_orthogonal_term_is_in_the_loss_once",),
    ),
    Mutation(
        name="completions-start-from-an-empty-state",
        promises=(9, 27),
        history="Rows of hybrid models laid out beside one another: the state of one ran on into the next, or was lost.",
        edits=(
            Edit(
                "model/recurrent.py",
                "        start = None if above[0] < 0 else torch.stack([states[parent] for parent in above])\n",
                "        start = None\n",
            ),
            Edit("model/select.py", "    if not difference <= _TOLERANCE[precision]:\n", "    if False:\n"),
        ),
        tests=(
            "tests/model/test_recurrent.py::test_log_probabilities_and_gradients_are_those_of_rows_alone[qwen3_next]",
        ),
    ),
    Mutation(
        name="experts-drawn-in-training",
        promises=(9, 26),
        history="PhiMoE draws its experts in training mode: DPO began at a margin of 0.002, gradients were off by 8 %.",
        edits=(
            Edit(
                "model/dropout.py",
                "            module.train = functools.partial(_evaluates, module)  # type: ignore[method-assign]\n",
                "",
            ),
        ),
        tests=("tests/model/test_dropout.py::test_experts_are_not_drawn_without_dropout",),
    ),
    Mutation(
        name="a-fresh-heads-norm-is-what-memory-held",
        promises=(29,),
        history="A reward model of ModernBERT began with a norm of 1e35: only linear layers of a fresh head were drawn.",
        edits=(Edit("model/heads.py", '        elif hasattr(part, "reset_parameters"):\n', "        elif False:\n"),),
        tests=("tests/model/test_heads.py::test_every_weight_of_a_fresh_head_is_drawn",),
    ),
    Mutation(
        name="padding-is-believed",
        promises=(9, 27),
        history="A sparse index with few heads ties many tokens; what it takes then depended on padding (0.8 nats).",
        edits=(Edit("model/select.py", "    if not difference <= most:\n", "    if False:\n"),),
        tests=("tests/model/test_select.py::test_padding_that_is_seen_is_refused",),
    ),
)
