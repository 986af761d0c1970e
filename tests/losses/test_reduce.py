from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import class_terms, names, policy_term, step_loss
from strop.records import Term

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def flat(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.cos(torch.arange(segment.numel(), dtype=torch.float64)), segment


def definition(aggregation: str, rows: list[torch.Tensor], max_length: int) -> float:
    tokens = sum(len(row) for row in rows)
    total = sum(float(row.sum()) for row in rows)
    return {
        "token_mean_global": total / max(tokens, 1),
        "seq_mean_token_mean": sum(float(row.mean()) for row in rows if len(row)) / len(rows),
        "seq_mean_token_sum": total / len(rows),
        "constant": total / (len(rows) * max_length),
    }[aggregation]


@PROPERTY
@given(LENGTHS, st.sampled_from(names.AGGREGATIONS), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 3))
def test_the_law_holds_for_every_aggregation(lengths, aggregation, cuts, world_size):
    """Any split of the step into micro-batches, on any number of ranks, adds up to the loss of the whole step."""
    values, _ = flat(lengths)
    rows = list(values.split(lengths))
    counts = {"tokens": values.numel(), "completions": len(lengths)}
    micro_batches: list[list[torch.Tensor]] = [[]]
    for row, cut in zip(rows, cuts, strict=False):
        if cut and micro_batches[-1]:
            micro_batches.append([])
        micro_batches[-1].append(row)
    ranks = [0.0] * world_size
    for index, batch in enumerate(micro_batches):
        own = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(row) for row in batch]))
        term = policy_term(torch.cat(batch), own, len(batch), aggregation=aggregation, max_completion_length=7)
        ranks[index % world_size] += float(step_loss([term], counts, world_size=world_size))
    average = sum(ranks) / world_size  # what data-parallel training does with gradients
    assert average == pytest.approx(definition(aggregation, rows, 7), rel=1e-12, abs=1e-12)


def test_a_micro_batch_that_divides_by_its_own_count_breaks_the_law():
    rows = [torch.tensor([1.0]), torch.tensor([3.0, 3.0, 3.0])]
    wrong = sum(step_loss([Term(row, "tokens")], {"tokens": len(row)}) for row in rows) / 2
    right = sum(step_loss([Term(row, "tokens")], {"tokens": 4}) for row in rows)
    assert (float(wrong), float(right)) == (2.0, 2.5)


def test_terms_weights_and_counts():
    terms = [Term(torch.tensor([1.0, 2.0]), "trees", 0.5), Term(torch.tensor([4.0]), "tokens")]
    assert float(step_loss(terms, {"trees": 2, "tokens": 8.0})) == pytest.approx(0.5 * 3 / 2 + 0.5)
    counts = {"trees": torch.tensor(2.0), "tokens": torch.tensor(8)}
    assert float(step_loss(terms, counts, world_size=3)) == pytest.approx(3 * (0.5 * 3 / 2 + 0.5))


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0)])
def test_nothing_to_learn_from_is_zero_with_zero_gradient(count):
    values = torch.zeros(0, requires_grad=True)
    loss = step_loss([Term(values * 2, "tokens")], {"tokens": count})
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_low_precision_values_are_summed_in_float32():
    values = torch.full((1000,), 1.01, dtype=torch.bfloat16)
    loss = step_loss([Term(values, "tokens")], {"tokens": 1000})
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(values[0]), rel=1e-6)


def test_class_terms():
    values, labels = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1, 0, 0])
    counts = {"desirable": 1, "undesirable": 2}
    assert float(step_loss(class_terms(values, labels, weight=2.0), counts)) == pytest.approx(2 * (1 + 4))
    none = step_loss(class_terms(values, torch.ones(3)), {"desirable": 3, "undesirable": 0})
    assert float(none) == pytest.approx(3.0)


def test_unknown_count_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"divided by 'token', but the step counts 'tokens'.*Did you mean 'tokens'"):
        step_loss([Term(torch.ones(1), "token")], {"tokens": 1})
    with pytest.raises(ConfigError, match="no terms"):
        step_loss([], {"tokens": 1})


def test_wrong_aggregation():
    values, segment = flat([2])
    with pytest.raises(ConfigError, match="aggregation is 'mean'"):
        policy_term(values, segment, 1, aggregation="mean")
    with pytest.raises(ConfigError, match="max_completion_length"):
        policy_term(values, segment, 1, aggregation="constant")
