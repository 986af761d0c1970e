from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import strop
import strop.rewards as rewards

SOURCE = str(Path(strop.__file__).parents[1])


def test_every_export_exists():
    for name in rewards.__all__:
        assert getattr(rewards, name).__name__
    with pytest.raises(AttributeError, match="Did you mean 'RewardSet'"):
        _ = rewards.RewardSets


def test_verifiers_and_function_rewards_do_without_torch():
    code = (
        "import sys\nfrom strop.rewards import RewardSet, RuleJudge, think_format_reward\n"
        "from strop.rewards import accuracy_reward, code_reward\n"
        "table = RewardSet([think_format_reward, RuleJudge(lambda *a: 0)]).score(['p', 'p'], ['a', 'b'])\n"
        "assert table.values.tolist() == [[0.0, 0.0], [1.0, 0.0]], table\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
