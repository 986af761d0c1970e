"""The README.md of a saved model: what it is, how it is loaded, how it was trained, and how that went."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from strop.disk import write_text
from strop.watch.run_directory import versions

CLASSES = {"causal": "CausalLM", "score": "SequenceClassification", "step": "TokenClassification"}
"""Head of a model -> the end of the name of the class that loads it."""
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "loss_type", "beta", "max_length", "max_completion_length", "num_generations",
    "temperature", "seed",
)  # fmt: skip
OURS, BLANK = "trained with strop's", "[More Information Needed]"
"""What a card of strop says, and what the blank form says that PEFT writes into every folder."""
NUMBERED = re.compile(r"\b\d{4}\.\d{4,5}\b")
CITATION = """@software{strop,
  title = {strop: post-training for language models},
  year = {2026}
}"""


def model_card(
    facts: Mapping[str, str],
    trainer: type,
    args: Any,
    history: Sequence[Mapping[str, Any]],
    *,
    name: str = "",
    datasets: Sequence[str] = (),
    **front: Any,
) -> str:
    """The card as Markdown with a front matter.

    Args:
        facts: `about` of the run.
        trainer: its class, whose docstring names the papers.
        history: log lines of the training.
        name: of the model; else that of its folder.
        datasets: ids of data sets on a hub.
        front: further fields of the front matter (license, language); tags among them are added to strop's.
    """
    tags = dict.fromkeys(["strop", args.method, *_several(front.pop("tags", None))])
    matter = {
        "library_name": "peft" if "adapter" in facts else "transformers",
        "base_model": model if "/" in (model := facts.get("model", "")) else None,
        "datasets": list(datasets),
        "tags": list(tags),
        **front,
    }
    name = name or Path(str(args.output_dir)).name
    summary = (inspect.getdoc(trainer) or "").partition("\n")[0].rstrip(".")
    parts = [
        f"---\n{yaml.safe_dump({k: v for k, v in matter.items() if v}, sort_keys=False)}---\n",
        f"# {name}\n",
        f"{facts.get('model', 'A model')}, {OURS} {trainer.__name__}: {summary[:1].lower()}{summary[1:]}.\n",
        f"## How to load it\n\n```python\n{_loading(getattr(trainer, 'task', 'causal'), 'adapter' in facts)}\n```\n",
        _training(facts, args),
        _metrics(history),
        "## Versions\n\n" + ", ".join(f"{package} {number}" for package, number in versions().items()) + "\n",
        _citation(trainer),
    ]
    return "\n".join(part for part in parts if part)


def write_card(folder: Path, card: str) -> None:
    """Write the card into a folder, unless there is one that somebody wrote."""
    path = folder / "README.md"
    there = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not there or OURS in there or BLANK in there:
        write_text(path, card)


def _several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _loading(task: str, adapter: bool) -> str:
    kind, module = ("AutoPeftModelFor", "peft") if adapter else ("AutoModelFor", "transformers")
    loader = kind + CLASSES[task]
    return (
        f"from {module} import {loader}\nfrom transformers import AutoTokenizer\n\n"
        f'model = {loader}.from_pretrained("THIS_FOLDER_OR_ID")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER_OR_ID")'
    )


def _training(facts: Mapping[str, str], args: Any) -> str:
    rows = {name: facts[name] for name in ("data", "adapter", "command") if name in facts}
    values = {name: getattr(args, name, None) for name in SETTINGS}
    rows |= {name: str(getattr(v, "value", v)) for name, v in values.items() if v is not None and v != -1}
    lines = "\n".join(f"| {name} | `{_cell(value)}` |" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{lines}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _metrics(history: Sequence[Mapping[str, Any]]) -> str:
    last: dict[str, float] = {}
    for line in history:
        last |= {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    hidden = ("_runtime", "_per_second", "_time", "_flos")
    shown = {k: v for k, v in last.items() if not k.endswith(hidden) and k not in ("epoch", "step", "learning_rate")}
    if not shown:
        return ""
    lines = "\n".join(f"| `{_cell(name)}` | {value:.4g} |" for name, value in shown.items())
    said = f"As they were logged last, at step {history[-1].get('step', 0)}."
    return f"## Metrics\n\n{said}\n\n| metric | value |\n|---|---|\n{lines}\n"


def _citation(trainer: type) -> str:
    doc = inspect.getdoc(trainer) or ""
    sources = doc[match.end() :] if (match := re.search(r"Sources?:", doc)) else ""
    papers = [f"* https://arxiv.org/abs/{number}" for number in dict.fromkeys(NUMBERED.findall(sources))]
    said = "The method's papers:\n\n" + "\n".join(papers) + "\n\n" if papers else ""
    return f"## Citation\n\n{said}```bibtex\n{CITATION}\n```\n"
