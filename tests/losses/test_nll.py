from __future__ import annotations

import math

import pytest
import torch

from strop.errors import ConfigError
from strop.losses import dft_loss, nll_loss, sft_loss, step_loss
from strop.records import Term


def test_uniform_model_has_log_vocabulary():
    logps = torch.zeros(7, 11, dtype=torch.float64).log_softmax(-1)[:, 3]
    assert float(step_loss([Term(nll_loss(logps), "tokens")], {"tokens": 7})) == pytest.approx(math.log(11))


def test_dft_gradient_is_the_probability():
    logps = torch.tensor([-0.1, -2.0, -5.0], requires_grad=True)
    dft_loss(logps).sum().backward()
    torch.testing.assert_close(logps.grad, -logps.detach().exp())


def test_nothing_scored_is_zero_with_zero_gradient():
    logps = torch.zeros(0, requires_grad=True)
    for loss_type in ("nll", "dft"):
        loss = step_loss([Term(sft_loss(logps, loss_type=loss_type), "tokens")], {"tokens": 0})
        assert float(loss.detach()) == 0.0
        loss.backward()


def test_unknown_loss_type():
    with pytest.raises(ConfigError, match="'nll', 'dft'"):
        sft_loss(torch.zeros(1), loss_type="chunked_nll")
