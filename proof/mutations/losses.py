"""Bugs of losses: pure functions of tensors."""

from __future__ import annotations

from proof.mutation import Edit, Mutation

MUTATIONS = (
    Mutation(
        name="mean-of-micro-batch-means",
        promises=(1,),
        history=(
            "Each micro-batch was divided by its own tokens, so short rows weighed more with gradient accumulation "
            "(trl#2175, transformers#35856, torchtune#2334)."
        ),
        edits=(
            Edit(
                "losses/reduce.py",
                "(term.weight * world_size) / _count(counts, term.per) for term in terms]",
                "(term.weight * world_size) / max(term.values.numel(), 1) for term in terms]",
            ),
        ),
        tests=("tests/losses/test_reduce.py::test_the_law_holds_for_every_aggregation",),
        quick=True,
    ),
    Mutation(
        name="label-smoothing-ignored",
        promises=(3, 2),
        history="DPO's sigmoid loss took label_smoothing in its config and left it out of the formula (TRL; cDPO).",
        edits=(
            Edit(
                "losses/dpo.py",
                '    "sigmoid": lambda p: smoothed_logistic(p.logit, p.eps),',
                '    "sigmoid": lambda p: softplus(-p.logit),',
            ),
        ),
        tests=("tests/losses/test_vectors_offline.py::test_dpo",),
    ),
    Mutation(
        name="log1mexp-without-double-where",
        promises=(2, 5),
        history=(
            "ORPO's log(1 - e^x) took the right branch forward, while the other one's infinite slope times 0 made the "
            "gradient NaN once the model was certain (TRL's ORPO)."
        ),
        edits=(
            Edit(
                "losses/numerics.py",
                "        torch.log1p(-torch.exp(torch.where(near, half, x))),",
                "        torch.log1p(-torch.exp(x)),",
            ),
        ),
        tests=("tests/losses/test_numerics.py::test_log1mexp_has_no_nan_in_float32",),
    ),
    Mutation(
        name="alphapo-overflows",
        promises=(2, 5),
        history="AlphaPO's exponential of an unlikely completion's log-prob overflowed, and its gradient became NaN.",
        edits=(
            Edit(
                "losses/cpo.py",
                "return mean_logps if alpha == 0.0 else -expm1_bounded(-alpha * mean_logps) / alpha",
                "return mean_logps if alpha == 0.0 else -torch.expm1(-alpha * mean_logps) / alpha",
            ),
        ),
        tests=("tests/losses/test_cpo.py::test_no_overflow_for_unlikely_completions",),
    ),
    Mutation(
        name="spurious-advantages",
        promises=(5, 14),
        history=(
            "Equal rewards differ from their rounded mean in the last bit; divided by a tiny deviation this became an "
            "advantage of its own, and the policy learned from noise (GRPO implementations with a tiny epsilon)."
        ),
        edits=(
            Edit(
                "losses/advantages.py",
                "return torch.where(valid & (highest > lowest), groups - mean, 0.0), count",
                "return torch.where(valid, groups - mean, 0.0), count",
            ),
        ),
        tests=("tests/losses/test_advantages.py::test_identical_rewards_give_exactly_zero",),
    ),
    Mutation(
        name="cispo-absolute-cap",
        promises=(2, 3),
        history="CISPO's weights were capped at epsilon_high itself instead of 1 + epsilon_high: 0.2 for all (TRL).",
        edits=(
            Edit(
                "losses/policy_options.py",
                'return 1 + self.upper if self.cispo_cap == "relative" else self.upper',
                "return self.upper",
            ),
        ),
        tests=("tests/losses/test_vectors_online.py::test_policy",),
    ),
    Mutation(
        name="rounding-counted-as-clipped",
        promises=(22,),
        history="A value that was not clipped, but rounded on its way through the clip, counted in val/clipfrac_avg: two "
        "processes logged other shares than one.",
        edits=(Edit("losses/metrics.py", "(change.abs() > bound) & ((moved", "((moved"),),
        tests=("tests/losses/test_metrics.py::test_rounding_is_no_clipped_value",),
    ),
    Mutation(
        name="k3-without-bias-correction",
        promises=(14,),
        history="k3 as a loss without the ratio follows the forward KL, not the one in the objective (TRL, verl, OpenRLHF).",
        edits=(
            Edit(
                "losses/policy.py",
                "(kl * ratio if told.use_bias_correction_kl else kl)",
                "kl",
            ),
        ),
        tests=("tests/losses/test_enumeration.py::test_bias_corrected_k3_follows_the_reverse_kl",),
    ),
    Mutation(
        name="k1-as-loss",
        promises=(14,),
        history="The KL term was the log-ratio itself, whose expected gradient is exactly zero (verl, OpenRLHF options).",
        edits=(Edit("losses/kl.py", "return expm1_bounded(-gap, RATIO_LIMIT) + gap", "return gap"),),
        tests=("tests/losses/test_enumeration.py::test_k3_follows_the_forward_kl",),
    ),
    Mutation(
        name="nash-md-drops-later-kl",
        promises=(14,),
        history="Nash-MD's penalty of a token left out what the token does to the KL of later ones (TRL).",
        edits=(
            Edit(
                "losses/nash_md.py",
                "        gap = reverse_cumsum(gap, segment)\n",
                "        gap = gap * 1\n",
            ),
        ),
        tests=("tests/losses/test_enumeration.py::test_nash_md_is_unbiased",),
    ),
    Mutation(
        name="baseline-includes-oneself",
        promises=(14,),
        history="A leave-one-out baseline that counts the completion itself scales the gradient by 1 - 1/G.",
        edits=(
            Edit(
                "losses/advantages.py",
                "return (deviation * count / (count - 1).clamp(min=1)).reshape(-1).to(dtype)",
                "return deviation.reshape(-1).to(dtype)",
            ),
        ),
        tests=("tests/losses/test_enumeration.py::test_leave_one_out_is_unbiased",),
    ),
    Mutation(
        name="turns-that-never-came-are-left-out",
        promises=(2, 3),
        history="The baseline of a turn left out completions that had ended, so that a turn that one alone reached was "
        "not learned from (turn-level credit).",
        edits=(
            Edit(
                "losses/advantages.py",
                "to_come = totals.new_zeros(len(turn_rewards), most)",
                'to_come = totals.new_full((len(turn_rewards), most), float("nan"))',
            ),
        ),
        tests=("tests/losses/test_enumeration.py::test_credit_by_turn_is_the_policy_gradient",),
    ),
    Mutation(
        name="ppo-score-after-the-end",
        promises=(18,),
        history="PPO put a completion's score one position after its last token, on padding (TRL's PPOv2).",
        edits=(
            Edit(
                "losses/ppo.py",
                "last = segment_last(segment, num_completions)  # (N,)",
                "last = segment_last(segment, num_completions).roll(1)  # (N,)",
            ),
        ),
        tests=("tests/losses/test_ppo.py::test_the_score_is_on_the_last_real_token",),
    ),
    Mutation(
        name="gae-looks-past-the-end",
        promises=(18,),
        history="GAE bootstrapped from the value of a position after the last token instead of 0.",
        edits=(
            Edit(
                "losses/ppo.py",
                "torch.cat([value_rows[:, 1:], torch.zeros_like(value_rows[:, :1])], dim=1)",
                "torch.cat([value_rows[:, 1:], value_rows[:, -1:]], dim=1)",
            ),
        ),
        tests=("tests/losses/test_ppo.py::test_gae_against_its_definition",),
    ),
    Mutation(
        name="gkd-mixes-cross-entropy-in",
        promises=(2,),
        history="A vendored fused JSD kept its default of half hard-label cross entropy (trl#5731).",
        edits=(
            Edit(
                "losses/jsd.py",
                "parts = [_divergence(student, teacher, options.beta) for _, student, teacher in chunks]",
                "parts = [\n"
                "            0.5 * _divergence(student, teacher, options.beta) - 0.5 * student.gather(1, teacher.argmax(1)[:, None])[:, 0]\n"
                "            for _, student, teacher in chunks\n"
                "        ]",
            ),
        ),
        tests=("tests/losses/test_jsd.py::test_fused_equals_plain",),
    ),
    Mutation(
        name="jsd-ends-from-the-formula",
        promises=(2,),
        history="beta = 0 and 1 went through the mixture formula, which goes to 0 there: nothing was learned (GKD).",
        edits=(
            Edit(
                "losses/jsd.py",
                "    if beta == 0.0:\n        return _kl(teacher, student)\n    if beta == 1.0:\n        return _kl(student, teacher)\n",
                "    beta = min(max(beta, 1e-12), 1 - 1e-12)\n",
            ),
        ),
        tests=("tests/losses/test_jsd.py::test_ends_are_the_kl_divergences_and_not_the_limits",),
    ),
    Mutation(
        name="gkd-temperature-not-in-the-divergence",
        promises=(3, 2),
        history="GKD's temperature changed what was sampled and never reached the divergence (TRL).",
        edits=(
            Edit(
                "losses/jsd.py",
                "return torch.log_softmax(widen(logits) / temperature, dim=-1).clamp(min=LOG_FLOOR)",
                "return torch.log_softmax(widen(logits), dim=-1).clamp(min=LOG_FLOOR)",
            ),
        ),
        tests=("tests/losses/test_vectors_offline.py::test_gkd", "tests/losses/test_jsd.py::test_high_temperature"),
    ),
    Mutation(
        name="ipo-sums-despite-lengths",
        promises=(2,),
        history="IPO exists with summed and with averaged log-ratios; code bases mixed them up, with other optima.",
        edits=(
            Edit(
                "losses/dpo.py",
                'if loss_type in DPO_OPTIONS["length_norm"] and lengths_chosen is not None and lengths_rejected is not None:',
                'if loss_type == "sigmoid_norm" and lengths_chosen is not None and lengths_rejected is not None:',
            ),
        ),
        tests=("tests/losses/test_vectors_offline.py::test_dpo",),
    ),
    Mutation(
        name="wpo-weights-not-capped",
        promises=(2,),
        history="WPO's pair weights grow beyond 1 without the cap that the authors' code has (TRL).",
        edits=(
            Edit(
                "losses/wpo.py",
                "return (log_weight.clamp(max=0.0) if clamp else log_weight).exp()",
                "return log_weight.exp()",
            ),
        ),
        tests=("tests/losses/test_wpo.py::test_weights_carry_no_gradient_and_are_capped",),
    ),
    Mutation(
        name="absent-class-divides-by-zero",
        promises=(16, 5),
        history="A batch without a desirable (or undesirable) row divided by its count of zero: NaN (trl#1447).",
        edits=(
            Edit(
                "losses/reduce.py",
                "return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)",
                "return count",
            ),
        ),
        tests=("tests/losses/test_reduce.py::test_nothing_to_learn_from_is_zero_with_zero_gradient",),
    ),
    Mutation(
        name="kto-point-below-zero",
        promises=(16,),
        history="KTO's reference point stands for a KL, yet its estimate from a small batch can be negative if not clamped.",
        edits=(
            Edit(
                "losses/kto.py",
                "return (total / count).clamp(min=0)",
                "return total / count",
            ),
        ),
        tests=("tests/losses/test_kto.py::test_reference_point_is_clamped_after_the_mean_and_carries_no_gradient",),
    ),
    Mutation(
        name="bco-delta-follows-the-larger-class",
        promises=(16,),
        history="BCO's shift was the mean of all rewards pooled, so it moved with the share of labels (TRL).",
        edits=(
            Edit(
                "losses/bco.py",
                "return 0.5 * (_or_zero(self.desirable) + _or_zero(self.undesirable))",
                "return _or_zero(self.desirable if self.desirable is not None else self.undesirable)",
            ),
        ),
        tests=("tests/losses/test_bco.py::test_balanced_delta_ignores_the_share_of_classes",),
    ),
    Mutation(
        name="fused-jsd-holds-all-logits",
        promises=(21,),
        history="Distillation materialised student and teacher logits of every token at once (TRL's GKD ran out of memory).",
        edits=(
            Edit(
                "losses/jsd.py",
                "for start in range(0, student[0].shape[0], options.chunk):\n        rows = slice(start, start + options.chunk)",
                "for start in range(0, min(1, student[0].shape[0])):\n        rows = slice(start, start + student[0].shape[0])",
            ),
        ),
        tests=("tests/losses/test_jsd.py::test_fused_never_holds_the_logits_of_all_tokens",),
    ),
    Mutation(
        name="a-rank-that-is-its-own",
        promises=(34,),
        history="DPO's `aot` was its default wherever two orders happened to agree, which they did on processors without "
        "AVX-512: what a test said of it was luck.",
        edits=(
            Edit(
                "losses/aot.py",
                "            return AOTPartners(_same_rank(gap, ref_gap), torch.zeros_like(gap))\n",
                "            return AOTPartners(ref_gap, torch.zeros_like(gap))\n",
            ),
        ),
        tests=("tests/options/test_allowed_values.py::test_every_name_is_a_run_of_its_own[dpo-loss_type-]",),
    ),
)
