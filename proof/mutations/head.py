"""Bugs of the language-model head: its products, its softmax, the chunks that it works in, the kernels."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="softcap-dropped-by-the-fused-head",
        promises=(2,),
        history="A fused head computed Gemma 2's logits without their soft cap (fused kernels; on fused losses see trl#7063).",
        edits=(
            Edit(
                "model/lm_head.py",
                "            raw.div_(self.softcap).tanh_().mul_(self.softcap)\n",
                "            pass\n",
            ),
        ),
        tests=("tests/model/test_head.py::test_every_path_equals_the_plain_one",),
    ),
    Mutation(
        name="temperature-dropped-by-the-fused-head",
        promises=(2, 15),
        history="Log-probs in the loss were those at temperature 1 while completions were sampled at another (trl#6789).",
        edits=(
            Edit(
                "model/head.py",
                "    budget = default_head_bytes(hidden.device) if head_bytes is None else max(int(head_bytes), 1)\n"
                "    options = _Options(head, want, float(temperature), budget, grad_entropy)\n",
                "    budget = default_head_bytes(hidden.device) if head_bytes is None else max(int(head_bytes), 1)\n"
                "    options = _Options(head, want, 1.0, budget, grad_entropy)\n",
            ),
        ),
        tests=("tests/model/test_forward.py::test_all_statistics_and_temperature[0.7-llama]",),
    ),
    Mutation(
        name="shares-of-chunks-rounded",
        promises=(2,),
        history="Gradients of chunks were added up in bfloat16, where small shares of a large sum vanish: entropy drifted (fused heads).",
        edits=(
            Edit(
                "model/head.py",
                "                share = wide_product(matrix.t(), rows)  # (V, H)\n",
                "                share = wide_product(matrix.t(), rows).to(matrix.dtype)  # (V, H)\n",
            ),
        ),
        tests=("tests/model/test_head_card.py::test_shares_of_many_chunks_are_added_up_in_float32",),
    ),
    Mutation(
        name="kernels-are-believed",
        promises=(32,),
        history="A kernel that another compiler or card makes wrong was used all the same (fused losses, now and again).",
        edits=(
            Edit(
                "model/head_trial.py",
                "    return head_kernels if _are_right(device) else None\n",
                "    return head_kernels\n",
            ),
        ),
        tests=("tests/model/test_head_card.py::test_kernels_are_for_cards_with_triton_and_right_there",),
    ),
    Mutation(
        name="wide-products-are-believed",
        promises=(32,),
        history="A product that was asked for in float32 came rounded to bfloat16, and log-probs with it.",
        edits=(
            Edit(
                "model/products.py",
                "dtype in HALF and _gives_float32(device, dtype))\n",
                "dtype in HALF)\n",
            ),
        ),
        tests=("tests/model/test_head_card.py::test_without_the_operator_matrices_are_widened",),
    ),
    Mutation(
        name="an-impossible-token-makes-the-entropy-no-number",
        promises=(2,),
        history="Tokens that a model rules out (logits of minus infinity) made 0 times infinity, and the entropy not a number.",
        edits=(
            Edit(
                "model/softmax.py",
                "    shifted = z.clamp(min=_DEEP) if into.entropy is not None else None\n",
                "    shifted = z.clone() if into.entropy is not None else None\n",
            ),
        ),
        tests=("tests/model/test_head.py::test_tokens_that_a_model_rules_out_have_no_share_in_the_entropy",),
    ),
    Mutation(
        name="an-improbable-target-under-a-cap",
        promises=(2,),
        history="The slope of Gemma 2's cap was read off a probability that the residual had swallowed: rare tokens got many times their gradient, of the wrong sign (found here).",
        edits=(
            Edit(
                "model/softmax.py",
                "    log_p = p.log().scatter_(1, at_target, known)  # (n, V)\n",
                "    log_p = p.log()  # (n, V)\n",
            ),
            Edit(
                "model/softmax.py",
                "    p = residual.scatter(1, at_target, known.exp()).clamp_(",
                "    p = residual.scatter_add(1, at_target, torch.ones_like(known)).clamp_(",
            ),
        ),
        tests=("tests/model/test_head.py::test_a_cap_on_tokens_that_hardly_ever_come",),
    ),
    Mutation(
        name="chunks-share-a-rounded-weight",
        promises=(2,),
        history="Under autocast the chunks of a head with an adapter added their gradients up on one rounded copy of its weights (found here).",
        edits=(Edit("model/head.py", "enabled=enabled, cache_enabled=False)\n", "enabled=enabled)\n"),),
        tests=("tests/model/test_head_card.py::test_shares_of_chunks_through_a_called_layer_are_added_up_in_float32",),
    ),
    Mutation(
        name="full-logits",
        promises=(21,),
        history="The logits of all tokens were made at once, and kept for backward: [B, T, V] in float32 (every trainer once).",
        edits=(
            Edit(
                "model/head.py",
                "        return max(1, min(count, rows)), keep\n",
                "        return max(1, count), bool(kept)\n",
            ),
        ),
        tests=(
            "tests/model/test_forward.py::test_no_tensor_of_prompt_times_vocabulary_and_none_beyond_the_budget[llama-False]",
        ),
    ),
)
