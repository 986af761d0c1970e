"""Bugs of what computes layers on a card: kernels, compilers, and the checks that they must pass before they are used."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

CUDA = "tests/model/test_attention_cuda.py"
DENSE = f"{CUDA}::test_calls_and_merge_are_the_dense_attention"
FAULTS = "tests/model/test_attention.py::test_the_self_test_finds_faults_in_any_precision"
COMPILED = "tests/model/test_compiled_layers.py"
FAST = "tests/engine/test_fast_layers.py"
OFFLOADING = "tests/engine/test_offloading.py"
FITTING = "tests/engine/test_fitting.py"

MUTATIONS = (
    Mutation(
        name="keys-of-the-first-prompt-alone",
        promises=(9, 32),
        history="The keys of a call over many groups were sliced as those of its first.",
        edits=(
            Edit(
                "model/attention_cuda.py",
                "            slice(keys[0].start, keys[-1].end),\n",
                "            slice(keys[0].start, keys[0].end),\n",
            ),
        ),
        tests=(DENSE,),
    ),
    Mutation(
        name="log-sum-exps-in-the-layout-of-another-kernel",
        promises=(9, 32),
        history="The backward kernel was given log-sum-exps as (tokens, heads): of other heads and tokens, in the right shape.",
        edits=(
            Edit(
                "model/attention_cuda.py",
                "                lse[:, queries].contiguous(),\n",
                "                lse[:, queries].t().contiguous().view(lse.shape[0], -1),\n",
            ),
        ),
        tests=(DENSE,),
    ),
    Mutation(
        name="shares-of-a-merge-exchanged",
        promises=(9, 32),
        history="Two attention results were merged with each other's weights.",
        edits=(
            Edit(
                "model/attention_cuda.py",
                "            own_share = (before - merged).exp().t().unsqueeze(-1)  # (L, Hq, 1)\n"
                "            cross_share = (cross_lse - merged).exp().t().unsqueeze(-1)\n",
                "            cross_share = (before - merged).exp().t().unsqueeze(-1)  # (L, Hq, 1)\n"
                "            own_share = (cross_lse - merged).exp().t().unsqueeze(-1)\n",
            ),
        ),
        tests=(DENSE,),
    ),
    Mutation(
        name="gradients-of-keys-from-the-last-call-alone",
        promises=(9, 32),
        history="A prompt's keys got the gradient of one of the calls that read them, and not the sum.",
        edits=(
            Edit(
                "model/attention_cuda.py",
                "            d_key[call.keys] += cross[1]\n",
                "            d_key[call.keys] = cross[1]\n",
            ),
        ),
        tests=(DENSE,),
    ),
    Mutation(
        name="a-self-test-that-forgets-what-is-not-a-number",
        promises=(9, 32),
        history="A check kept the worst error by comparing, and after NaN every comparison took the next, smaller one.",
        edits=(
            Edit(
                "model/attention.py",
                "                worst, place = error if error > worst else math.inf, ",
                "                worst, place = error, ",
            ),
        ),
        tests=(FAULTS,),
    ),
    Mutation(
        name="a-self-test-shorter-than-a-block",
        promises=(9, 32),
        history="A kernel was tried on rows that fit into one of its blocks, and lost what stood in the block before.",
        edits=(
            Edit(
                "model/attention.py", "    *((272, -1), (1, -1), (65, -1)),\n", "    *((33, -1), (1, -1), (65, -1)),\n"
            ),
        ),
        tests=(FAULTS,),
    ),
    Mutation(
        name="another-implementation-is-believed",
        promises=(9, 32),
        history="A replacement of PyTorch's flash kernels was used on the word of the test that those had passed.",
        edits=(
            Edit(
                "model/attention.py",
                "        if _kernel_is_right(kernel, *shape, behind):\n",
                "        if _kernel_is_right(kernel, *shape):\n",
            ),
        ),
        tests=(f"{CUDA}::test_an_implementation_of_the_users_own_is_left_where_it_is",),
    ),
    Mutation(
        name="compiled-layers-are-believed",
        promises=(32,),
        history="A compiler's graphs were used as they came, and what they computed was another layer.",
        edits=(
            Edit(
                "model/layer_check.py",
                "        if not excess <= max(beyond, 1.0):\n",
                "        if excess < 0:\n",
            ),
        ),
        tests=(f"{COMPILED}::test_layers_that_differ_are_named", f"{FAST}::test_a_compiler_that_is_wrong_is_not_used"),
    ),
    Mutation(
        name="layers-half-compiled-and-unchecked",
        promises=(32,),
        history="One layer could not be compiled; those before it stayed so, unchecked, and the run said that none was.",
        edits=(
            Edit(
                "model/compiled_layers.py",
                "next((layer for layer in layers if",
                "next((layer for layer in layers[:1] if",
            ),
        ),
        tests=(f"{COMPILED}::test_where_one_forward_is_not_the_class_s_all_layers_stay_as_they_were",),
    ),
    Mutation(
        name="a-setting-recorded-as-the-parent-saw-it",
        promises=(32,),
        history="What was hidden from the parent was written into config.yaml as switched off.",
        edits=(
            Edit(
                "engine/fast_layers.py",
                "        self._aside.close()\n",
                "        pass\n",
            ),
        ),
        tests=(f"{FAST}::test_a_run_records_what_was_set",),
    ),
    Mutation(
        name="a-plain-reference-beside-a-compiled-policy",
        promises=(32,),
        history="The policy's layers were compiled and the reference's not: the first step did not begin at the reference.",
        edits=(
            Edit(
                "engine/fast_layers.py",
                '        if hasattr(reference, "model"):\n            models += ',
                '        if not hasattr(reference, "model"):\n            models += ',
            ),
        ),
        tests=(f"{FAST}::test_policy_and_reference_are_compiled_together",),
    ),
    Mutation(
        name="a-kernels-loss-in-the-place-of-the-head",
        promises=(32,),
        history="A library of kernels put its fused loss into the model too, and the method's own was bypassed.",
        edits=(
            Edit(
                "model/liger_layers.py",
                "        apply_liger_kernel(inner, {**(chosen or {}), **dict.fromkeys(LOSSES, False)})\n",
                "        apply_liger_kernel(inner, {**(chosen or {})})\n",
            ),
        ),
        tests=(f"{FAST}::test_ligers_layers_are_used_and_its_losses_are_not",),
    ),
    Mutation(
        name="compiling-switches-to-tf32",
        promises=(32,),
        history="Asked to compile, a trainer rounded all float32 products to ten bits without a word (transformers).",
        edits=(
            Edit(
                "settings/devices.py",
                "        settings.tf32 = False\n",
                "        pass\n",
            ),
        ),
        tests=("tests/settings/test_devices.py::test_compiling_does_not_round_float32_products",),
    ),
    Mutation(
        name="weights-go-out-with-the-activations",
        promises=(32,),
        history="Activation offloading copied views and casts of every weight to the host too, at each pass.",
        edits=(
            Edit(
                "engine/offloading.py",
                "        if tuple(tensor.shape) in shapes or storage_of(tensor) in storages:\n",
                "        if isinstance(tensor, nn.Parameter):\n",
            ),
        ),
        tests=(f"{OFFLOADING}::test_weights_stay_in_every_form",),
    ),
    Mutation(
        name="checkpointing-that-was-refused",
        promises=(3,),
        history="A trainer switched checkpointing on although it had been set to False.",
        edits=(
            Edit(
                "engine/fitting.py",
                "    return trainer.args.checkpointing_open and alone",
                "    return alone",
            ),
        ),
        tests=(f"{FITTING}::test_what_was_set_is_kept",),
    ),
    Mutation(
        name="rows-cut-over-processes-that-each-compute-all",
        promises=(3, 32),
        history="Context parallelism was accepted and did nothing: each process of a group computed the same rows.",
        edits=(
            Edit(
                "settings/devices.py",
                "    return {name: size for name, size in sizes.items() if size > 1}\n",
                "    return {name: size for name, size in sizes.items() if size < 1}\n",
            ),
        ),
        tests=("tests/settings/test_devices.py::test_what_is_refused",),
    ),
    Mutation(
        name="the-launchers-precision-passed-over",
        promises=(3, 32),
        history="A run that was launched in float16 trained in bfloat16, the default of the settings, without a word.",
        edits=(
            Edit(
                "settings/devices.py",
                '    if settings.bf16 is None and not settings.fp16 and launched in ("bf16", "fp16"):\n',
                '    if settings.bf16 is None and not settings.fp16 and launched == "bf16":\n',
            ),
        ),
        tests=("tests/settings/test_devices.py::test_the_launchers_precision_is_taken_where_nothing_else_is_said",),
    ),
)
