"""Dynamic sampling in rounds ahead: further prompts with the weights of their round, as strict order draws them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.online.test_ahead import Learned, Weighed, same, weights

from strop.online.refill import further_rows, with_further
from strop.records import Example
from strop.testing.cases import make_trainer

ROWS = [{"prompt": f"{kind} {i}", "kind": kind} for i in range(6) for kind in ("flat", "steep")]


def uneven(completions: list[str], kind: list[str], **columns: Any) -> list[float]:
    """All alike under a flat prompt; all different under a steep one."""
    return [0.5 if k == "flat" else float(i) for i, k in enumerate(kind)]


class Seeded(Weighed):
    """Completions of the weights, the prompt and the seed; the order of seeds is kept."""

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, **options: Any) -> Any:
        self.seeds = [*getattr(self, "seeds", []), sampling.seed]
        return super().generate(prompts, n, sampling, **options)

    def _completion(self, key: str) -> tuple[list[int], str]:
        return super()._completion(f"{key} {self.seeds[-1]}")


class Pinned(Seeded):
    """Of weights that do not move."""

    def stage(self, model: Any) -> Any:
        return lambda: setattr(self, "loaded", (0, 0.0))

    def sync(self, model: Any = None) -> None:
        self.loaded = (0, 0.0)


def run(folder: Any, engine: Any, windows: int, **options: Any) -> Any:
    settings = {
        "num_generations": 2, "per_device_train_batch_size": 8, "max_completion_length": 8, "max_steps": 5,
        "dynamic_sampling": True, "max_staleness": windows, "shuffle_dataset": False, "logging_steps": 1,
        "learning_rate": 0.01, **({"vllm_importance_sampling_correction": False} if windows else {}),
    }  # fmt: skip
    trainer = make_trainer("grpo", folder, rows=ROWS, trainer={"reward_funcs": uneven}, **settings | options)
    trainer._generator, trainer._sampler_compared = engine(trainer), True
    trainer.learned = Learned(trainer)
    trainer.add_callback(trainer.learned)
    return trainer


def test_where_weights_do_not_move_it_draws_what_strict_order_draws(tmp_path):
    runs = []
    for windows in (0, 1, 2):
        trainer = run(tmp_path / str(windows), Pinned, windows)
        trainer.train()
        trees = [[(t.row, t.completions, t.sampled.advantages) for t in step] for step in trainer.learned.steps]
        names = ("loss", "reward", "dynamic_sampling/kept_ratio")
        lines = [[line[name] for name in names] for line in trainer.state.log_history if "loss" in line]
        runs.append((trees, lines, trainer.generator.seeds, trainer.rounds, weights(trainer)))
    (trees, lines, seeds, moments, end), *others = runs
    assert len(set(seeds)) == len(seeds) == moments > 5, "every round of sampling has random numbers of its own"
    assert {len(step) for step in trees} >= {4}, "no step was filled up"
    for other in others:
        assert other[:4] == (trees, lines, seeds, moments) and same(other[4], end)


@pytest.mark.parametrize(("windows", "versions"), [(1, [0, 0, 1, 2, 3]), (2, [0, 0, 0, 1, 2])])
def test_further_prompts_are_of_the_version_of_their_round(windows, versions, tmp_path):
    trainer = run(tmp_path, Weighed, windows)
    trainer.train()
    assert trainer.learned.versions() == [[version] for version in versions]
    kinds = {trainer.train_dataset[t.row].extras["columns"]["kind"] for step in trainer.learned.steps for t in step}
    assert kinds == {"steep"} and {count for _, count in trainer.generator.asked} != {4}


def test_a_run_that_is_gone_on_with_has_the_groups_that_were_chosen(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 5}
    whole = run(tmp_path / "run", Seeded, 2, **saving)
    whole.train()
    again = run(tmp_path / "run", Seeded, 2, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert {version for version, _ in again.generator.asked} == {2}
    assert again.generator.seeds == whole.generator.seeds[-len(again.generator.seeds) :]
    assert again.learned.versions() == whole.learned.versions()[2:] and again.rounds == whole.rounds
    assert same(weights(again), weights(whole))


class Rows(list[Example]):
    """A set whose first row was left out, so that a row's number is not its place."""

    def row(self, place: int) -> int:
        return self[place].row


def test_further_rows_are_those_that_the_window_has_not():
    rows = Rows(Example([1], [], row=number) for number in range(1, 6))
    places = further_rows(rows, 3, 0, {1, 4})
    first = [next(places) for _ in range(3)]
    assert {rows.row(place) for place in first} == {2, 3, 5}
    assert {next(places) for _ in range(5)} == set(range(5)), "and then all of them"


def test_a_round_that_teaches_nothing_stays_as_it_is():
    asked: list[list[int]] = []
    groups: list[Any] = ["a", "b"]
    kept, share = with_further(groups, lambda group: False, iter(range(9)), lambda rows: asked.append(rows) or [], 0)
    assert kept == groups and not asked and share["dynamic_sampling/kept_ratio"].total == 0
