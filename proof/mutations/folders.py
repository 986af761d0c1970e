"""Bugs of folders that do not know their run, and of scripts whose words nobody hears."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="a-new-run-among-yesterdays-checkpoints",
        promises=(31,),
        history="save_total_limit counted an older run's checkpoints: the new ones were deleted, yesterday's kept.",
        edits=(
            Edit(
                "engine/run_identity.py",
                "        return next(path for path in numbered if not path.exists())\n",
                "        return folder\n",
            ),
        ),
        tests=("tests/engine/test_run_identity.py::test_a_new_run_in_a_used_folder_keeps_both",),
    ),
    Mutation(
        name="another-runs-checkpoint-goes-on",
        promises=(31,),
        history="A DPO run went on as ORPO, or with another learning rate, of which the old one was used.",
        edits=(Edit("engine/run_identity.py", "if name in saved and saved[name] != value}", "if name not in now}"),),
        tests=("tests/engine/test_run_identity.py::test_another_run_is_refused_by_what_differs",),
    ),
    Mutation(
        name="a-finished-run-trains-one-more-step",
        promises=(31, 7),
        history="Going on from the last checkpoint of a finished run took one further step, to other weights.",
        edits=(
            Edit(
                "engine/trainer.py",
                "        if step is None:\n            return None\n        self._load_from_checkpoint",
                "        if step is None or step:\n            return None\n        self._load_from_checkpoint",
            ),
        ),
        tests=("tests/engine/test_run_identity.py::test_a_finished_run_is_finished",),
    ),
    Mutation(
        name="an-override-that-nothing-calls",
        promises=(33,),
        history="compute_loss and other hooks of a subclass were never called, and nothing said so.",
        edits=(
            Edit(
                "engine/overrides.py",
                "        for name, value in vars(base).items():\n",
                "        for name, value in [] and vars(base).items():\n",
            ),
        ),
        tests=(
            "tests/engine/test_overrides.py::test_an_override_that_nothing_calls_is_refused_when_the_class_is_made",
        ),
    ),
    Mutation(
        name="corrected-from-here-on-and-not-said",
        promises=(31,),
        history="A run that was gone on with had a correction by default that its first half had not been learned with.",
        edits=(
            Edit(
                "engine/checkpoint.py",
                '    for line in new_since(folder, manifest.get("run"), run):\n        say(line)\n',
                "",
            ),
        ),
        tests=("tests/engine/test_run_identity.py::test_a_run_that_is_corrected_from_here_on_is_told",),
    ),
)
