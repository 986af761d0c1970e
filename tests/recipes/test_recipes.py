"""Recipes: each makes a config of its method, gives way to what is given, and stands on the page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from pages.papers import PAGE, page, section

from strop import CPOConfig, DPOConfig
from strop.cli import main
from strop.cli.flags import parse
from strop.cli.train import flag_groups
from strop.errors import ConfigError
from strop.methods.registry import BY_VERB
from strop.recipes import RECIPES, Recipe
from strop.recipes.offline import OFFLINE
from strop.recipes.online import ONLINE
from strop.settings.config_file import read_config
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


def test_no_two_recipes_share_a_name_and_every_method_has_one() -> None:
    assert len(RECIPES) == len(OFFLINE) + len(ONLINE)
    assert {recipe.method for recipe in RECIPES.values()} == set(BY_VERB)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_makes_a_config_of_its_method_that_holds_all_it_says(recipe: Recipe, tmp_path: Path) -> None:
    config_class = BY_VERB[recipe.method].config()
    fields = {field.name for field in dataclasses.fields(config_class)}
    assert set(recipe.settings) <= fields, "a name that a config only passes over"
    made = config_class.from_recipe(recipe.name, output_dir=str(tmp_path))
    for name, value in recipe.settings.items():
        assert getattr(made, name) in (value, [value]), name


def test_what_is_given_wins_by_any_of_its_names() -> None:
    made = CPOConfig.from_recipe("simpo", beta=3.0, warmup_ratio=0.2, max_seq_length=64)
    assert (made.beta, made.warmup_steps, made.max_length, made.simpo_gamma) == (3.0, 0.2, 64, 1.0)


def test_a_recipe_of_another_method_or_of_none_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="'simpo' is one of 'cpo', and this is 'dpo'"):
        DPOConfig.from_recipe("simpo")
    with pytest.raises(ConfigError, match=r"'tulu' is not known\. Did you mean 'tulu3'"):
        DPOConfig.from_recipe("tulu")


def test_the_command_line_starts_from_a_recipe_and_what_it_says_wins(tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=len(toy_tokenizer())).save_pretrained(tmp_path / "model")
    toy_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl"), "--max_steps", "1"]
    recipe = ["--output_dir", str(tmp_path / "run"), "--recipe", "simpo", "--simpo-gamma", "0.7", "--use_cpu"]
    assert main(["cpo", *flags, *recipe]) == 0
    written = read_config(str(tmp_path / "run" / "config.yaml"))
    assert (written["loss_type"], written["beta"], written["simpo_gamma"]) == ("simpo", 2.0, 0.7)
    assert "recipe" not in written, "the settings stand there themselves"


def test_the_page_is_of_these_tables() -> None:
    assert all(section(recipe) in page() for recipe in RECIPES.values())
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m pages.papers"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_page_shows_a_recipe_as_a_file_that_config_takes_and_where_it_is_from(
    recipe: Recipe, tmp_path: Path
) -> None:
    title, shown = section(recipe).rsplit("\n\n", 1)
    (tmp_path / "recipe.yaml").write_text("\n".join(line.strip() for line in shown.splitlines()))
    method = BY_VERB[recipe.method]
    flags = {flag.name: flag for group in flag_groups(method).values() for flag in group}
    made = method.config()(**parse(["--config", str(tmp_path / "recipe.yaml")], flags, {}, recipe.method))
    for name, value in recipe.settings.items():
        assert getattr(made, name) in (value, [value]), name
    assert (recipe.where or "*not confirmed*") in title


SMALL = {"num_generations": 4, "max_completion_length": 4, "max_length": 64, "steps_per_generation": 2,
         "num_iterations": 1}  # fmt: skip
FIRST = {recipe.method: name for name, recipe in reversed(RECIPES.items())}
"""Method -> the name of its first recipe."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST.values() else [pytest.mark.slow]) for name in RECIPES]
)
def test_a_recipe_starts_a_run(name: str, tmp_path: Path) -> None:
    """Two steps of a tiny model, with sizes that are the machine's made small."""
    recipe = RECIPES[name]
    settings = {key: SMALL.get(key, value) for key, value in recipe.settings.items() if key != "num_train_epochs"}
    size = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1}
    trainer = make_trainer(recipe.method, tmp_path, rows=rows_for(recipe.method, 8), **{**settings, **size})
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
