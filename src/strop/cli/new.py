"""`strop new method|reward|environment NAME`: a file that works, to be changed, and the test that it passes."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from strop.cli.flags import Flag, all_values
from strop.disk import write_text
from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import BY_CLASS, BY_VERB

FLAGS = (Flag("folder", str, help="Where the files go: here; for a method, a folder of its own, strop-NAME."),)
TITLE = "strop new method|reward|environment NAME [--folder FOLDER]: a file that works, and its test"
WRITTEN = {
    "method": {"module": "strop_$snake.py", "pyproject": "pyproject.toml", "test": "test_$snake.py"},
    "reward": {"module": "$snake.py", "test": "test_$snake.py"},
    "environment": {"module": "$snake.py", "test": "test_$snake.py"},
}
"""Kind -> part (its text is starters/KIND_PART.txt) -> name of the file."""
NEXT = {
    "method": "pip install -e $folder, and it is a verb: strop $verb --help",
    "reward": "strop grpo --reward_funcs $module:$snake --model MODEL --dataset ROWS",
    "environment": "GRPOTrainer(model, args, train_dataset=rows, environment_factory=$Name)",
}


def run(argv: list[str]) -> int:
    words: list[str] = []
    values = all_values(argv, FLAGS, words)
    if len(words) != 2:
        raise ConfigError(f"Write: strop new method|reward|environment NAME. Got: {' '.join(words) or 'nothing'}.")
    kind, name = words
    if kind not in WRITTEN:
        raise ConfigError(f"'{kind}': choose one of {', '.join(WRITTEN)}.{did_you_mean(kind, WRITTEN)}")
    names = names_of(kind, name)
    folder = Path(values["folder"] or (f"strop-{names['verb']}" if kind == "method" else "."))
    module, *_, test = written = write(kind, names, folder)
    print("Written: " + ", ".join(map(str, written)))
    print(f"Try it:  python -m pytest {test}")
    print("Use it:  " + Template(NEXT[kind]).substitute(names, module=module, folder=folder))
    return 0


def names_of(kind: str, name: str) -> dict[str, str]:
    """`my-loss` as the verb, `my_loss` in code, `MyLoss` of classes.

    Raises:
        ConfigError: it is no name of a module, or taken.
    """
    snake = re.sub(r"[-\s]+", "_", name.strip()).lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", snake) or keyword.iskeyword(snake):
        raise ConfigError(f"'{name}' cannot name a module. Take letters, digits and dashes, for example my-{kind}.")
    names = {"snake": snake, "verb": snake.replace("_", "-"), "Name": "".join(map(str.capitalize, snake.split("_")))}
    if kind == "method" and (names["verb"] in BY_VERB or f"{names['Name']}Trainer" in BY_CLASS):
        raise ConfigError(f"There is a method '{names['verb']}' already. Choose another name.")
    if kind != "method" and not Path(f"{snake}.py").exists() and importlib.util.find_spec(snake) is not None:
        raise ConfigError(f"A file {snake}.py would hide the module '{snake}'. Choose another name.")
    return names


def write(kind: str, names: dict[str, str], folder: Path) -> list[Path]:
    """The files of a kind; none where one of them is there.

    Raises:
        ConfigError: a file is there already.
        SetupError: the folder cannot be written.
    """
    targets = {part: folder / Template(file).substitute(names) for part, file in WRITTEN[kind].items()}
    if there := [str(path) for path in targets.values() if path.exists()]:
        raise ConfigError(f"There is {' and '.join(there)} already. Choose another name, or another --folder.")
    for part, path in targets.items():
        text = files("strop.cli").joinpath("starters", f"{kind}_{part}.txt").read_text(encoding="utf-8")
        write_text(path, Template(text).substitute(names))
    return list(targets.values())
