"""Bugs of the optimizer step that an accelerator brings, and of what ranks tell each other in it."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

WAITS = "tests/engine/test_waits.py::"

MUTATIONS = (
    Mutation(
        name="a-number-is-read-at-every-micro-batch",
        promises=(32,),
        history="The loss of every micro-batch was read for a running mean, and the card stood still meanwhile.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "            loss += work.losses[-1]\n",
                "            loss += float(work.losses[-1])\n",
            ),
        ),
        tests=(f"{WAITS}test_a_step_waits_for_the_card_once[sft]",),
    ),
    Mutation(
        name="float64-on-a-device-without-it",
        promises=(32,),
        history="Sums of metrics were taken in float64 on every device; on Apple's the first step failed.",
        edits=(
            Edit(
                "device.py",
                "    return torch.float64 if has_float64(device) else torch.float32\n",
                "    return torch.float64\n",
            ),
        ),
        tests=(f"{WAITS}test_a_step_waits_for_the_card_once[dpo]",),
    ),
    Mutation(
        name="tensors-of-a-shared-copy-are-swapped",
        promises=(32,),
        history="What a batch needs was sent in one buffer, and each tensor began where the one before it did.",
        edits=(
            Edit(
                "device.py",
                "            starts[name] = total\n",
                "            starts[name] = 0\n",
            ),
        ),
        tests=(f"{WAITS}test_numbers_sent_together_are_what_they_were",),
    ),
    Mutation(
        name="old-log-probs-are-not-left-behind",
        promises=(32, 15),
        history="Log-probs of the first use of a round were fetched and never written: every later ratio was 1.",
        edits=(
            Edit(
                "methods/policy_gradient.py",
                "            write_token_lists(batch, fields)\n",
                "            pass\n",
            ),
        ),
        tests=("tests/methods/test_policy_gradient.py::test_the_first_use_of_a_round_leaves_its_log_probs_behind",),
    ),
    Mutation(
        name="rows-that-are-left-out-count-in-a-mean",
        promises=(22,),
        history="A mean over some of the elements, taken without picking them out, was divided by the number of all.",
        edits=(
            Edit(
                "losses/metrics.py",
                "torch.zeros_like(values)).sum(), wide(keep).sum())",
                "torch.zeros_like(values)).sum(), float(values.numel()))",
            ),
        ),
        tests=("tests/losses/test_metrics.py",),
    ),
    Mutation(
        name="extremes-of-nothing-are-logged",
        promises=(22,),
        history="The least of no elements is infinite, and that was logged as a share.",
        edits=(
            Edit(
                "engine/metrics.py",
                "if count > 0 and not _unseen(key, total)}",
                "if count > 0}",
            ),
        ),
        tests=("tests/engine/test_metrics.py",),
    ),
    Mutation(
        name="numbers-of-ranks-by-place",
        promises=(1, 22),
        history="Ranks sent their numbers without names, and one that had other names was added up wrongly.",
        edits=(
            Edit(
                "collectives.py",
                "    return _told({name: float(value) for name, value in numbers.items()}, world_size)\n",
                "    everyone = _told([float(value) for value in numbers.values()], world_size)\n"
                "    return [dict(zip(numbers, part, strict=False)) for part in everyone]\n",
            ),
        ),
        tests=("tests/engine/test_collectives.py::test_ranks_need_not_have_the_same_names",),
    ),
    Mutation(
        name="a-process-group-held-after-its-end",
        promises=(1, 22),
        history="A process group that a script had destroyed was still held, and its process aborted when Python ended.",
        edits=(
            Edit(
                "collectives.py",
                "        _hosts = weakref.ref(default), beside\n",
                "        _hosts = (lambda: default), beside\n",
            ),
        ),
        tests=("tests/engine/test_collectives.py::test_a_group_that_a_script_is_done_with_is_gone",),
    ),
    Mutation(
        name="remembered-log-probs-cut-in-the-wrong-places",
        promises=(8,),
        history="The log-probs of a batch were fetched together and shared out in equal parts.",
        edits=(
            Edit(
                "engine/reference_scores.py",
                "zip(keys, logps.take().split(sizes), strict=True)",
                "zip(keys, logps.take().tensor_split(len(sizes)), strict=True)",
            ),
        ),
        tests=("tests/engine/test_reference_scores.py",),
    ),
)
