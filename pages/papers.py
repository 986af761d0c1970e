"""docs/papers.md: its introduction as it stands there, and a section for each recipe of the tables.

python -m pages.papers
"""

from __future__ import annotations

from pathlib import Path

from strop.recipes import RECIPES, Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "papers.md"


def page() -> str:
    """The page as Markdown: a section for each method, in the order of the tables."""
    sections = [PAGE.read_text(encoding="utf-8").partition("\n\n## ")[0]]
    for method in dict.fromkeys(recipe.method for recipe in RECIPES.values()):
        sections.append(f"## {method}")
        sections += [section(recipe) for recipe in RECIPES.values() if recipe.method == method]
    return "\n\n".join(sections) + "\n"


def section(recipe: Recipe) -> str:
    """One recipe: its name and paper, its settings as YAML that `--config` takes, and what they leave open."""
    rows = f" {recipe.rows_per_step} rows a step." if recipe.rows_per_step else ""
    note = f" {recipe.note}" if recipe.note else ""
    settings = "\n".join(f"    {name}: {value}" for name, value in recipe.settings.items())
    source = f"[arXiv {recipe.source}](https://arxiv.org/abs/{recipe.source})"
    where = f", {recipe.where}" if recipe.where else ", *not confirmed*"
    return f"### `{recipe.name}`\n\n{recipe.title}, {source}{where}.{rows}{note}\n\n{settings}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
