"""Bugs of sampling on a card, and of sampling in half precision; a card is emulated where there is none."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="cast-weights-stay-in-the-policy",
        promises=(15,),
        history="Weights that were cast for sampling outlived it: later samples and steps were those of older, rounded weights.",
        edits=(Edit("rollout/cast_weights.py", "            stack.callback(module.__dict__.pop, name, None)\n", ""),),
        tests=("tests/rollout/test_cast_weights.py::test_a_policy_is_as_it_was_and_moves",),
    ),
    Mutation(
        name="every-weight-is-cast",
        promises=(15,),
        history="A policy was sampled from in half precision throughout, also where autocast computes in float32 (DoRA's norms).",
        edits=(
            Edit(
                "rollout/cast_weights.py", "        same = torch.equal(logits(), expected)\n", "        same = True\n"
            ),
        ),
        tests=("tests/rollout/test_cast_weights.py::test_a_weight_that_another_layer_adds_up_is_left_to_autocast",),
    ),
    Mutation(
        name="a-mask-frozen-into-a-graph",
        promises=(15,),
        history="A CUDA graph kept what was computed before its capture, and was believed after a replay of the same step.",
        edits=(
            Edit("rollout/cuda_graph.py", "                fixed.forget_biases()\n", ""),
            Edit(
                "rollout/cuda_graph.py",
                "        if not worst <= _TOLERANCE * scale:\n",
                "        if False:\n",
            ),
        ),
        tests=("tests/rollout/test_on_a_card.py::test_replays_are_the_eager_steps",),
    ),
    Mutation(
        name="a-nucleus-cut-at-its-candidates",
        promises=(15,),
        history="Samplers on cards look at a fixed number of candidates, and cut the nucleus where it is wider.",
        edits=(Edit("rollout/draw.py", "    if bool(told[3:].any()):\n", "    if False:\n"),),
        tests=("tests/rollout/test_on_a_card.py::test_a_nucleus_wider_than_was_looked_at_is_drawn_again",),
    ),
    Mutation(
        name="prompts-forked-into-each-others-slots",
        promises=(15,),
        history="Slots of one copy for all prompts were shared out in another order than the prompts.",
        edits=(Edit("rollout/kv_cache.py", "in zip(where, places.split(", "in zip(reversed(where), places.split("),),
        tests=("tests/rollout/test_on_a_card.py::test_groups_that_share_slots_are_those_of_the_host",),
    ),
)
