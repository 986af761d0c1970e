"""docs/papers.md, from the tables that `--recipe` goes by.

python -m strop.recipes.page > docs/papers.md
"""

from __future__ import annotations

from strop.recipes import RECIPES, Recipe

INTRODUCTION = """# Papers, and the settings that reproduce them

<!-- python -m strop.recipes.page > docs/papers.md -->

A recipe is a paper's published settings by name. Whatever is given besides wins over it:

    strop cpo --recipe simpo --model M --dataset pairs.jsonl
    strop cpo --recipe simpo --learning_rate 1e-6 ...

    from strop import CPOConfig
    args = CPOConfig.from_recipe("simpo", output_dir="run", per_device_train_batch_size=4)

What depends on the machine is not in it: reach the rows of a step by `per_device_train_batch_size`,
`gradient_accumulation_steps` and processes; `steps_per_generation` counts micro-batches, so multiply it by the
accumulation. Behind a paper stands where the values were found: its table or section, the authors' own code, or
another's reading where those could not be seen. *Not confirmed* says that no place was found. The formulas, with what
differs from the papers, are in the docstrings of `strop.losses` and of the trainers.

LoRA without regret (Schulman et al., 2025, a report without an arXiv number) is a choice of adapter for any method:
`--lora --lora_target_modules all-linear`, a learning rate ten times that of full training, a rank as low as 1 where
rewards teach and as high as 256 where many rows do, and fewer than 32 rows a step."""


def page() -> str:
    """The page as Markdown: a section for each method, in the order of the tables."""
    sections = [INTRODUCTION]
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
    print(page(), end="")
