"""Bugs of the package itself: what is exported, explained, imported, and reached into."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="a-trainer-removed",
        promises=(17, 25),
        history="Five trainers went away in two releases, and scripts that imported them broke (TRL 1.13 and 1.14).",
        edits=(
            Edit(
                "methods/registry.py",
                '    Method("cpo", "CPO", "preference pairs without a reference (CPO, SimPO, AlphaPO)", rows="preference"),\n',
                "",
            ),
        ),
        tests=("tests/test_public_api.py::test_nothing_that_was_public_is_gone",),
    ),
    Mutation(
        name="a-setting-renamed",
        promises=(17, 25),
        history="Settings were renamed between releases without another name to go by; configs of the last release failed.",
        edits=(
            Edit(
                "settings/online.py",
                "    missing_eos_penalty: Annotated[float, Range(min=0)] | None = None\n",
                "    no_eos_penalty: Annotated[float, Range(min=0)] | None = None\n",
            ),
        ),
        tests=("tests/test_public_api.py::test_nothing_that_was_public_is_gone",),
    ),
    Mutation(
        name="a-name-of-the-last-release-unknown",
        promises=(25,),
        history="Values that the last release wrote into its own config were refused by the next one.",
        edits=(
            Edit(
                "settings/online.py",
                '    engine: Literal["auto", "native", "transformers", "vllm", "ray"] = "auto"\n',
                '    engine: Literal["native", "transformers", "vllm", "ray"] = "native"\n',
            ),
        ),
        tests=("tests/settings/test_released_configs.py",),
    ),
    Mutation(
        name="a-plan-without-the-shared-prompt",
        promises=(21,),
        history="Calculators of memory count every completion with a prompt of its own, or no logits at all.",
        edits=(
            Edit(
                "plan/memory.py",
                "    return trees * load.prompt + scored, scored\n",
                "    return max(trees * max(1, each), load.rows) * load.prompt + scored, scored\n",
            ),
        ),
        tests=("tests/plan/test_memory.py::test_a_step_takes_what_was_planned",),
    ),
    Mutation(
        name="a-plan-without-logits",
        promises=(21,),
        history="accelerate's estimate of memory is the weights times four: no logits, no activations.",
        edits=(
            Edit(
                "plan/memory.py",
                "    logits = min(scored * shape.vocabulary * 4, logit_bytes(load, resident + gradients)) if own.logits else 0\n",
                "    logits = 0\n",
            ),
        ),
        tests=("tests/plan/test_memory.py::test_the_logits_of_a_large_vocabulary_are_planned",),
    ),
    Mutation(
        name="reward-model-learns-the-opposite",
        promises=(17,),
        history="Chosen and rejected changed places on their way to the loss (a refactoring of paired columns).",
        edits=(
            Edit(
                "methods/reward.py",
                "        values = reward_loss(chosen, rejected, margin=margin,",
                "        values = reward_loss(rejected, chosen, margin=margin,",
            ),
        ),
        tests=("tests/learning/test_learning.py::test_reward",),
    ),
    Mutation(
        name="glossary-entry-missing",
        promises=(22,),
        history='Logged numbers were explained nowhere ("why is the GRPO loss 0?", five threads).',
        edits=(
            Edit(
                "report/glossary.py",
                '    Entry("nll_loss", LOSS, "Negative log-likelihood of the chosen completions.", "nats", "token", healthy="falls"),\n',
                "",
            ),
        ),
        tests=("tests/report/test_glossary.py::test_what_is_logged_is_explained",),
    ),
    Mutation(
        name="import-pulls-torch",
        promises=(24,),
        history="Importing the library, or asking for its help page, loaded every framework first.",
        edits=(
            Edit(
                "__init__.py",
                "from strop.methods.registry import BY_CLASS\n",
                "import torch  # noqa: F401\n\nfrom strop.methods.registry import BY_CLASS\n",
            ),
        ),
        tests=("tests/test_imports.py::test_import_strop_loads_no_framework",),
    ),
    Mutation(
        name="reaches-into-a-dependency",
        promises=(25,),
        history="Private names of transformers and accelerate were used in passing, and broke with their next release.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "        return self.score_with(model, batch, self.want(log), **self.training_options())\n",
                "        self.accelerator._models  # noqa: B018\n"
                "        return self.score_with(model, batch, self.want(log), **self.training_options())\n",
            ),
        ),
        tests=("tests/test_private_names.py::test_private_names_of_dependencies_are_listed",),
    ),
    Mutation(
        name="a-mistyped-compiler",
        promises=(3,),
        history="torch_compile_backend='inducto' was accepted, and layers stayed as they were: one reason among others.",
        edits=(
            Edit(
                "settings/devices.py",
                "    problems += compiler_problems(settings.torch_compile_backend, settings.torch_compile_mode)\n",
                "",
            ),
        ),
        tests=("tests/settings/test_devices.py::test_what_is_refused",),
    ),
)
