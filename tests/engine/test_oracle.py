"""The loss that a trainer logs equals the formula, computed row by row from the model's plain forward pass."""

from __future__ import annotations

import math

import pytest
import torch

from strop.testing.cases import make_trainer, rows_for

ROWS = 6


def row_logps(model, prompt, completion):
    """Log-probs of a completion's tokens from an ordinary forward pass on one row."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return [float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(completion)]


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def prepared(verb, folder, **overrides):
    """A trainer whose policy has moved away from its reference, and its examples."""
    trainer = make_trainer(verb, folder, rows=rows_for(verb, ROWS), eval_rows=rows_for(verb, ROWS), **overrides)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return trainer, [trainer.eval_dataset[i] for i in range(ROWS)]


def log_ratios(trainer, examples, index):
    """u of the completion `index` of every example."""
    with trainer.reference.active() as reference:
        pairs = [(e.prompt_ids, e.completions[index]) for e in examples]
        return [sum(row_logps(trainer.model, *p)) - sum(row_logps(reference, *p)) for p in pairs]


def test_sft_is_the_token_mean(tmp_path):
    trainer, examples = prepared("sft", tmp_path)
    values = [v for e in examples for v in row_logps(trainer.model, e.prompt_ids, e.completions[0])]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(-sum(values) / len(values), abs=1e-9)


def test_dpo(tmp_path):
    trainer, examples = prepared("dpo", tmp_path, beta=0.3)
    gaps = [w - r for w, r in zip(log_ratios(trainer, examples, 0), log_ratios(trainer, examples, 1), strict=True)]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(sum(softplus(-0.3 * g) for g in gaps) / ROWS, abs=1e-9)
    assert metrics["eval_rewards/margins"] == pytest.approx(0.3 * sum(gaps) / ROWS, abs=1e-9)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(g > 0 for g in gaps) / ROWS)


def test_xpo_offline_is_exponential(tmp_path):
    trainer, examples = prepared("xpo", tmp_path, beta=0.3)
    gaps = [w - r for w, r in zip(log_ratios(trainer, examples, 0), log_ratios(trainer, examples, 1), strict=True)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(math.exp(-0.3 * g) for g in gaps) / ROWS, rel=1e-9)


def test_kto_takes_its_point_from_the_mismatched_completions_of_the_whole_batch(tmp_path):
    trainer, examples = prepared("kto", tmp_path, beta=0.3, per_device_eval_batch_size=ROWS)
    assert all(e.completions[0] != e.completions[1] for e in examples)
    point = max(0.0, sum(log_ratios(trainer, examples, 1)) / ROWS)
    signs = [1 if e.extras["label"] else -1 for e in examples]
    losses = [1 - sigmoid(s * 0.3 * (u - point)) for s, u in zip(signs, log_ratios(trainer, examples, 0), strict=True)]
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] == pytest.approx(point, abs=1e-9)
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / ROWS, abs=1e-9)


def test_orpo_with_prompt_nll(tmp_path):
    trainer, examples = prepared("orpo", tmp_path, beta=0.3)
    sides = [[row_logps(trainer.model, e.prompt_ids, e.completions[i]) for e in examples] for i in (0, 1)]
    prompts = [row_logps(trainer.model, e.prompt_ids[:1], e.prompt_ids[1:]) for e in examples]
    nll_values = [v for part in (sides[0], prompts) for values in part for v in values]

    def log_odds(values):
        mean = sum(values) / len(values)
        return mean - math.log(-math.expm1(mean))

    odds = [softplus(-(log_odds(w) - log_odds(r))) for w, r in zip(*sides, strict=True)]
    expected = -sum(nll_values) / len(nll_values) + 0.3 * sum(odds) / ROWS
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-9)


def test_simpo_has_no_nll(tmp_path):
    trainer, examples = prepared("cpo", tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=1.0)
    sides = [[row_logps(trainer.model, e.prompt_ids, e.completions[i]) for e in examples] for i in (0, 1)]
    means = [[sum(v) / len(v) for v in side] for side in sides]
    losses = [softplus(-(2.0 * (w - r) - 1.0)) for w, r in zip(*means, strict=True)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / ROWS, abs=1e-9)


def test_bco_in_evaluation_keeps_its_shift(tmp_path):
    trainer, examples = prepared("bco", tmp_path, beta=0.3)
    signs = [1 if e.extras["label"] else -1 for e in examples]
    losses = [softplus(-s * 0.3 * u) for s, u in zip(signs, log_ratios(trainer, examples, 0), strict=True)]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / ROWS, abs=1e-9)
    assert trainer.delta_state.delta == 0.0


def test_reward_scores_the_last_token_of_each_side(tmp_path):
    trainer, examples = prepared("reward", tmp_path, center_rewards_coefficient=0.01)
    scores = []
    for index in (0, 1):
        side = []
        for example in examples:
            ids = torch.tensor([[*example.prompt_ids, *example.completions[index]]])
            with torch.no_grad():
                hidden = trainer.model.model(ids).last_hidden_state[0, -1]
                side.append(float(trainer.model.score(hidden)))
        scores.append(side)
    losses = [softplus(-(w - r)) + 0.01 * (w + r) ** 2 for w, r in zip(*scores, strict=True)]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / ROWS, abs=1e-9)
    assert metrics["eval_max_reward"] == pytest.approx(max(max(scores[0]), max(scores[1])), abs=1e-9)


def test_prm_classifies_the_marked_tokens(tmp_path):
    trainer, examples = prepared("prm", tmp_path)
    losses = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.completions[0]]])
        with torch.no_grad():
            logits = trainer.model.score(trainer.model.model(ids).last_hidden_state)[0]
        marked = [len(example.prompt_ids) + t for t, m in enumerate(example.mask(0)) if m]
        for position, label in zip(marked, example.extras["labels"], strict=True):
            losses.append(-float(logits[position].log_softmax(-1)[int(label)]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-9)


@pytest.mark.parametrize(("verb", "value"), [("dpo", math.log(2)), ("kto", 0.5), ("bco", math.log(2)), ("xpo", 1.0)])
def test_step_zero_has_no_kl(verb, value, tmp_path):
    trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, ROWS), eval_rows=rows_for(verb, ROWS))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(value, abs=1e-12)
