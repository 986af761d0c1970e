"""Nash-MD: a policy gradient against a mixture of policy and reference, one value per token."""

from __future__ import annotations

import torch
from torch import Tensor

from strop.losses.names import NASH_MD_FORMS, check_name, check_range
from strop.losses.segments import flatten, reverse_cumsum, segment_sum, unflatten


def nash_md_loss_flat(
    logps: Tensor,
    ref_logps: Tensor,
    preferences: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    beta: float = 0.1,
    form: str = "reward_to_go",
) -> Tensor:
    """Loss of each token: -sg(c_t) log pi(y_t), c_t = P(y > y') - 1/2 - beta K_t.

    K_t is the log-ratio log pi - log mu summed over the whole completion (`sequence`, the paper's estimate), from token
    t on (`reward_to_go`: the same expected gradient, less noise), or of token t alone (`trl`: biased, it leaves out
    what a token does to the KL of later ones; for comparison only). y comes from the policy, y' from the mixture
    (`geometric_mixture_logps`) and gets no gradient. 1/2 is a control variate. The value itself means nothing.

    Args:
        logps, ref_logps: (N,) log-probs of the scored tokens of y, at the sampling temperature, nats.
        preferences: (S,) P(y > y'|x) in [0, 1]; sigma(R(y) - R(y')) with a Bradley-Terry reward model.
        segment: (N,) completion of each token.
        num_completions: S.
        beta: weight of the KL, called tau in the paper.
        form: one of `NASH_MD_FORMS`.

    Returns:
        (N,); a step's loss is the sum over the number of completions.

    Raises:
        ConfigError: an unknown form.

    Source: arXiv 2312.00886, Appendix F, Eq. 13.
    """
    check_name(form, NASH_MD_FORMS, "form")
    gap = (logps - ref_logps).detach()  # (N,)
    if form == "sequence":
        gap = segment_sum(gap, segment, num_completions)[segment]
    elif form == "reward_to_go":
        gap = reverse_cumsum(gap, segment)
    return -(preferences.detach().to(gap.dtype)[segment] - 0.5 - beta * gap) * logps


def nash_md_loss(
    logps: Tensor,
    ref_logps: Tensor,
    preferences: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.1,
    form: str = "reward_to_go",
) -> Tensor:
    """`nash_md_loss_flat` for log-probs and a mask of shape (B, T), preferences (B,); 0 where the mask is 0."""
    keep, segment = flatten(mask)
    loss = nash_md_loss_flat(logps[keep], ref_logps[keep], preferences, segment, logps.shape[0], beta=beta, form=form)
    return unflatten(loss, keep)


def adversarial_loss(
    logps: Tensor, ref_logps: Tensor, rewards: Tensor, *, beta: float, baseline: Tensor | float = 0.0
) -> Tensor:
    """The min-max game max_pi min_psi E[r - psi] with log E_mu[e^(psi/beta)] <= 0, in closed form.

    The worst psi is beta log pi/mu, so the loss is -sg(r - beta (log pi(y) - log mu(y)) - b) log pi(y): policy
    gradient of the reward under a KL penalty. Without the constraint the inner minimum is minus infinity.

    Args:
        logps, ref_logps: (S,) log-probs summed over the completion, nats.
        rewards: (S,).
        beta: weight of the KL.
        baseline: () or (S,) b, independent of y.

    Returns:
        (S,); a step's loss is their mean.

    Not the Nash equilibrium of the paper, whose opponent is another policy.
    """
    advantage = rewards - beta * (logps - ref_logps) - baseline
    return -advantage.detach() * logps


def geometric_mixture_logps(logits: Tensor, ref_logits: Tensor, *, mixture_coef: float) -> Tensor:
    """Next-token log-probs of the opponent: normalised (1 - eta) log pi + eta log mu.

    Args:
        logits, ref_logits: (..., V) of policy and reference.
        mixture_coef: eta in [0, 1], the weight of the reference; 0 is self-play.

    Returns:
        (..., V) log-probs, nats.

    Raises:
        ConfigError: mixture_coef out of range.

    The mixture is taken token by token; it is not the mixture of whole completions.

    Source: arXiv 2312.00886.
    """
    check_range(mixture_coef, "mixture_coef", 0.0, 1.0, closed_high=True)
    if mixture_coef == 0.0:
        return torch.log_softmax(logits, dim=-1)
    if mixture_coef == 1.0:
        return torch.log_softmax(ref_logits, dim=-1)
    policy, reference = torch.log_softmax(logits, dim=-1), torch.log_softmax(ref_logits, dim=-1)
    return torch.log_softmax((1 - mixture_coef) * policy + mixture_coef * reference, dim=-1)
