"""Bugs of weights that are cut into shards over ranks: FSDP2 and DeepSpeed's ZeRO-3."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

LEARNS = "tests/engine/test_sharded.py::test_shards_learn_what_one_process_does"
HOLDS = "tests/engine/test_sharded.py::test_what_shards_hold_sample_save_and_refuse"

MUTATIONS = (
    Mutation(
        name="shards-divided-by-one-rank",
        promises=(1,),
        history="Shards average their gradients over ranks, and the loss is not multiplied by them: half the step on two.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "step_loss(output.terms, micro.step.counts, world_size=self.args.world_size)",
                "step_loss(output.terms, micro.step.counts, world_size=1 if self.shards else self.args.world_size)",
            ),
        ),
        tests=(LEARNS,),
    ),
    Mutation(
        name="fillers-learn",
        promises=(1,),
        history="What a rank computes to keep the others company is learned from, as a row more.",
        edits=(
            Edit(
                "engine/step_trainer.py",
                "counts = index < len(own) and not work.stand_in",
                "counts = not work.stand_in",
            ),
        ),
        tests=(LEARNS,),
    ),
    Mutation(
        name="whole-weights-not-put-back",
        promises=(1,),
        history="A checkpoint is read into a whole copy of a model in shards, and the shards stay what they were.",
        edits=(
            Edit(
                "engine/sharding.py",
                "            if put_back:\n                self.take_back()\n",
                "",
            ),
        ),
        tests=(HOLDS,),
    ),
    Mutation(
        name="gathered-weights-learn",
        promises=(1,),
        history="FSDP2 kept embeddings and head gathered after an evaluation, and the optimizer that training made then held "
        "these copies: they never moved.",
        edits=(
            Edit(
                "engine/sharded_trainer.py",
                "        if self.shards is not None:\n            reshard(self.shards.model)\n",
                "",
            ),
        ),
        tests=(HOLDS,),
    ),
    Mutation(
        name="weights-made-whole-without-gathering",
        promises=(1,),
        history="Under ZeRO-3 a model is copied while its weights lie on other ranks.",
        edits=(
            Edit(
                "model/zero3.py",
                "    with deepspeed.zero.GatheredParameters(list(cut.values())):\n        whole",
                "    with deepspeed.zero.GatheredParameters([]):\n        whole",
            ),
        ),
        tests=("tests/model/test_zero3.py::test_a_model_that_was_cut_is_whole_again",),
    ),
    Mutation(
        name="writes-into-gathered-weights-lost",
        promises=(1,),
        history="ZeRO-3 forgets what is written into gathered weights where no rank is named that wrote it.",
        edits=(Edit("model/zero3.py", "GatheredParameters(cut, modifier_rank=0)", "GatheredParameters(cut)"),),
        tests=("tests/model/test_zero3.py::test_what_is_written_into_whole_weights_stays",),
    ),
    Mutation(
        name="fingerprint-of-no-weights",
        promises=(1,),
        history="Under ZeRO-3 a reference was known by weights that lay on other ranks: log-probs of another reference, kept "
        "in a file of the folder, were taken for its own.",
        edits=(Edit("engine/reference_scores.py", "model.state_dict(keep_vars=True)", "model.state_dict()"),),
        tests=("tests/model/test_zero3.py::test_what_identifies_a_run_and_its_reference_does_not_depend_on_the_cut",),
    ),
    Mutation(
        name="run-identified-by-what-a-rank-holds",
        promises=(1,),
        history="Under ZeRO-3 a checkpoint said that its model has no weights, and its own run could not go on from it.",
        edits=(
            Edit(
                "engine/run_identity.py",
                "sum(map(size_of, model.parameters()))",
                "sum(parameter.numel() for parameter in model.parameters())",
            ),
        ),
        tests=("tests/model/test_zero3.py::test_what_identifies_a_run_and_its_reference_does_not_depend_on_the_cut",),
    ),
    Mutation(
        name="policy-and-critic-saved-without-weights",
        promises=(11,),
        history="Under ZeRO-3 PPO saved what its modules held while their weights lay on other ranks: nothing.",
        edits=(
            Edit(
                "methods/ppo.py",
                'getattr(self.reference, "adapter_names", None), state_dict)',
                'getattr(self.reference, "adapter_names", None))',
            ),
        ),
        tests=(
            "tests/engine/test_zero_checkpoints.py::"
            "test_policy_and_critic_are_saved_from_the_weights_that_were_gathered[full]",
        ),
    ),
    Mutation(
        name="a-rank-without-prompts-samples-nothing",
        promises=(19,),
        history="Under ZeRO-3 a rank that had no prompt of a short window went on to count, while the others waited for it "
        "in every pass of their sampling: the run hung.",
        edits=(
            Edit(
                "rollout/transformers_engine.py",
                "        if not self._in_lockstep:\n            return\n        with self._borrowed(None):",
                "        if True:\n            return\n        with self._borrowed(None):",
            ),
        ),
        tests=("tests/rollout/test_together.py::test_a_process_that_samples_less_helps_those_that_share_its_model",),
    ),
    Mutation(
        name="one-rank-draws-further-groups",
        promises=(19,),
        history="With dynamic_sampling a rank whose groups all taught something went on, while the others sampled further ones "
        "from the weights that it shares with them: FSDP2 and ZeRO-3 hung.",
        edits=(
            Edit(
                "methods/policy_gradient.py",
                "        if not is_sharded(self.accelerator):\n            return groups > 0\n",
                "        if True:\n            return groups > 0\n",
            ),
        ),
        tests=("tests/rollout/test_together.py::test_ranks_that_share_a_model_draw_further_groups_equally_often",),
    ),
)
