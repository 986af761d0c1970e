"""`strop run SCRIPT`: TRL's names in one process, and what is said at the end."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers
from pages.moving_from_trl import page

import strop
from strop.cli import main
from strop.cli.run import take_processes
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.scripts.alias import VERSION, Asked, Finder
from strop.scripts.differences import DEFAULTS, EVERY, NAMES, acts, differing_settings
from strop.scripts.run import closing_note, in_its_place, run_script


def took(code: str) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize("path", ["trl", "trl.trainer", "trl.trainer.dpo_trainer", "trl.experimental.anything.deep"])
def test_names_are_found_whatever_module_they_are_taken_from(path: str, asked: Asked) -> None:
    scope = took(f"from {path} import DPOTrainer, get_peft_config\nfrom {path} import DPOConfig")
    assert scope["DPOTrainer"] is strop.DPOTrainer and scope["get_peft_config"] is strop.get_peft_config
    assert list(asked.names) == ["DPOTrainer", "get_peft_config", "DPOConfig"]


def test_modules_and_constants_that_scripts_use(asked: Asked) -> None:
    scope = took(
        "import trl\nfrom trl import rewards\nfrom trl.trainer import utils\nimport trl.trainer.utils as u\n"
        "from trl.rewards import accuracy_reward\nfrom trl.trainer.utils import SIMPLE_CHAT_TEMPLATE\n"
        "from trl.import_utils import is_peft_available, is_vllm_available\nversion = trl.__version__\n"
        "kind = trl.experimental.ppo.PPOTrainer if hasattr(trl, 'experimental') else None"
    )
    assert scope["rewards"].accuracy_reward is strop.rewards.accuracy_reward
    assert scope["version"].startswith("1.") and scope["is_peft_available"]()
    assert scope["is_peft_available"](min_version="0.1") and not scope["is_peft_available"](min_version="99")
    assert scope["is_vllm_available"]() == (find_spec("vllm") is not None)
    assert "{% for" in scope["SIMPLE_CHAT_TEMPLATE"]


def test_a_name_that_is_not_here_says_what_to_use(asked: Asked) -> None:
    with pytest.raises(ImportError, match="value_model="):
        took("from trl import AutoModelForCausalLMWithValueHead")
    with pytest.raises(ImportError, match="Did you mean 'DPOTrainer'"):
        took("from trl.trainer.dpo import DPOTrainr")


def test_configs_are_noted_and_stay_what_they_are(asked: Asked, tmp_path: Path) -> None:
    make = f"args = DPOConfig(output_dir={str(tmp_path)!r}, use_cpu=True)"
    args = took(f"from trl import DPOConfig\n{make}")["args"]
    assert asked.configs == [args] and type(args) is strop.DPOConfig
    assert pickle.loads(pickle.dumps(args)).beta == args.beta
    mine = took(f"from trl import DPOConfig\nclass Mine(DPOConfig): pass\n{make.replace('DPOConfig', 'Mine')}")["args"]
    assert isinstance(mine, strop.DPOConfig) and asked.configs[-1] is mine


def test_the_note_names_what_was_met_and_nothing_else(asked: Asked) -> None:
    made = "CPOConfig(output_dir='x', use_cpu=True, gradient_checkpointing=True)"
    took(f"from trl.experimental.cpo import CPOConfig, CPOTrainer\nargs = {made}")
    note = closing_note(asked)
    assert len(note) == 3 and note[1].startswith("  - CPOTrainer adds no NLL") and "logging_nan_inf_filter" in note[2]
    assert closing_note(Asked()) == []


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda d: f"{d.config}-{d.field}")
def test_a_default_that_differs_is_said_until_it_is_set(default: Any, tmp_path: Path) -> None:
    config = strop.SFTConfig if default.config == EVERY else getattr(strop, default.config)
    engine = {"engine": "vllm"} if default.field.startswith("vllm_") else {}
    if default.field == "vllm_server_host":
        engine["vllm_mode"] = "server"
    args = config(output_dir=str(tmp_path), use_cpu=True, **engine)
    assert acts(args, default)
    assert any(f".{default.field} is " in line for line in differing_settings([args]))
    if default.trl is not None:
        args = config(output_dir=str(tmp_path), use_cpu=True, **engine, **{default.field: default.trl})
        assert not any(f".{default.field} is " in line for line in differing_settings([args]))


def test_names_that_differ_are_names_of_strop() -> None:
    assert set(NAMES) <= set(strop.__all__)


def test_processes_and_the_script_are_told_apart() -> None:
    assert take_processes(["s.py", "--processes", "3"]) == (1, ["s.py", "--processes", "3"])
    assert take_processes(["--processes", "2", "s.py", "a"]) == (2, ["s.py", "a"])
    assert take_processes(["--processes=2", "s.py"]) == (2, ["s.py"])
    for words in (["--processes", "none", "s.py"], ["--proceses", "2", "s.py"]):
        with pytest.raises(ConfigError, match=r"processes|no flag --proceses"):
            take_processes(words)


PARSES = """
import threading
from {module} import HfArgumentParser
from trl import ModelConfig
from trl.experimental.ppo import PPOConfig

def main():
    args, _ = HfArgumentParser((PPOConfig, ModelConfig)).parse_args_into_dataclasses()
    open("parsed", "a").write(f"{{args.num_iterations}} {{args.max_completion_length}}")

if "{module}" == "transformers":
    main()
else:  # nobody waits for the thread but the end of the program
    threading.Thread(target=lambda: threading.Event().wait(0.2) or main()).start()
"""


@pytest.mark.parametrize("module", ["transformers", "transformers.hf_argparser"])
def test_the_parser_is_another_while_a_script_and_its_threads_run(
    module: str, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = transformers.HfArgumentParser, transformers.hf_argparser.HfArgumentParser, sys.argv, [*sys.path]
    (tmp_path / "script.py").write_text(PARSES.format(module=module))
    nested = "from strop.scripts.run import run_script\nimport sys\nrun_script('script.py', sys.argv[1:])\n"
    (tmp_path / "outer.py").write_text(nested + "from transformers import HfArgumentParser as parser\n")
    words = ["--output_dir", "out", "--use_cpu", "true", "--num_ppo_epochs", "3", "--response_length", "7"]
    run_script("outer.py", words)
    assert (tmp_path / "parsed").read_text() == "3 7"
    after = transformers.HfArgumentParser, transformers.hf_argparser.HfArgumentParser, sys.argv, sys.path
    assert after == before


def test_a_process_that_a_script_starts_anew_finds_strop_too(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, Finder)])
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    with in_its_place(tmp_path / "script.py", tmp_path, []):  # multiprocessing hands on the path
        scope = took("from trl import DPOTrainer\nfrom trl.experimental.gkd import GKDConfig\nimport trl")
    assert scope["DPOTrainer"] is strop.DPOTrainer and scope["trl"].__version__ == VERSION


def test_one_process_alone_says_what_differed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    took("from trl import BEMACallback")  # and no config, which would know its process
    assert closing_note(asked)
    monkeypatch.setenv("RANK", "1")
    assert not closing_note(asked)


@pytest.mark.slow
def test_a_script_that_parses_with_transformers_knows_trls_names(tmp_path: Path) -> None:
    """In a process of its own: what was imported before decides which `transformers` a script finds."""
    (tmp_path / "script.py").write_text(
        "from transformers import HfArgumentParser\nfrom trl import ModelConfig\n"
        "from trl.experimental.ppo import PPOConfig\n"
        "args, _ = HfArgumentParser((PPOConfig, ModelConfig)).parse_args_into_dataclasses()\n"
        "print('parsed', args.num_iterations, args.max_completion_length, args.remove_unused_columns)\n"
    )
    command = [sys.executable, "-m", "strop", "run", "script.py", "--output_dir", "out", "--use_cpu", "true"]
    command += ["--num_ppo_epochs", "3", "--response_length", "7", "--no_remove_unused_columns", "--stop_token", "eos"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "parsed 3 7 False" in run.stdout, run.stderr


def test_a_script_that_is_not_there_names_those_that_are(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "train.py").write_text("")
    assert main(["run", str(tmp_path / "trian.py")]) == 2
    assert "no such script" in (error := capsys.readouterr().err) and "train.py" in error
    assert main(["run", "--help"]) == 0 and "--processes" in capsys.readouterr().out


def test_the_page_is_current() -> None:
    written = Path(__file__).parents[2] / "docs" / "moving-from-trl.md"
    assert written.read_text(encoding="utf-8") == page(), "run python -m pages.moving_from_trl"
    assert all(f"`{method.prefix}" in page() for method in METHODS if f"{method.prefix}Trainer" in NAMES)


SCRIPT = """
import sys
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config
from beside import POINT

def main(script_args, training_args, model_args):
    data = load_dataset(script_args.dataset_name)
    trainer = DPOTrainer(
        model_args.model_name_or_path, args=training_args, train_dataset=data[script_args.dataset_train_split],
        eval_dataset=data[script_args.dataset_test_split], peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    return POINT

if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    sys.exit(main(*parser.parse_args_and_config()))
"""


def test_a_script_runs_as_it_is(
    models: dict[str, str], tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [])
    for name, text in {"script.py": SCRIPT, "beside.py": "POINT = 0"}.items():
        (tmp_path / name).write_text(text)
    words = ["--model_name_or_path", models["model_id"], "--dataset_name", write_rows(tmp_path, "pairs"), "--use_peft"]
    words += ["--output_dir", "out", "--max_steps", "1", "--use_cpu", "true", "--report_to", "none"]
    with pytest.raises(SystemExit) as end:
        main(["run", "script.py", *words])
    assert end.value.code == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "DPOConfig.logging_nan_inf_filter is False by default, and True in TRL" in capsys.readouterr().out


SEVEN = {
    "sft": ("chats", ()),
    "dpo": ("pairs", ("--no_remove_unused_columns",)),
    "kto": ("labelled", ("--use_peft", "--lora_target_modules", "all-linear")),
    "reward": ("pairs", ()),
    "grpo": ("prompts", ("--reward_funcs", "mine.length", "think_format_reward", "--num_generations", "2")),
    "rloo": ("prompts", ("--reward_funcs", "mine.length", "--num_generations", "2")),
    "distillation": ("prompts", ("--teacher_model_name_or_path", "{small_model}")),
}
"""TRL's own scripts -> the rows that they train on, and further words."""


def spoken(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def rows_of(kind: str) -> list[dict[str, Any]]:
    rows = []
    for i in range(8):
        prompt, good = spoken("user", f"hello {i}"), spoken("assistant", "good")
        rows.append(
            {
                "chats": {"messages": prompt + good},
                "pairs": {"prompt": prompt, "chosen": good, "rejected": spoken("assistant", "bad bad")},
                "labelled": {"prompt": prompt, "completion": good, "label": bool(i % 2)},
                "prompts": {"prompt": prompt},
            }[kind]
        )
    return rows


def write_rows(folder: Path, kind: str) -> str:
    """A folder with a train and a test split, as `load_dataset` reads it."""
    (folder / kind).mkdir()
    for split in ("train", "test"):
        (folder / kind / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows_of(kind))))
    return str(folder / kind)


@pytest.mark.slow
@pytest.mark.parametrize("verb", SEVEN)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_of_trl_runs_unedited(verb: str, processes: int, models: dict[str, str], tmp_path: Path) -> None:
    package = find_spec("trl")
    if package is None or package.origin is None:
        pytest.skip("needs the trl package, for its scripts")
    kind, words = SEVEN[verb]
    (tmp_path / "mine.py").write_text(
        "def length(completions, **kwargs):\n    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    data = write_rows(tmp_path, kind)
    command = [sys.executable, "-m", "strop", "run", *([f"--processes={processes}"] if processes > 1 else [])]
    command += [str(Path(package.origin).parent / "scripts" / f"{verb}.py"), "--model_name_or_path", models["model_id"]]
    command += ["--dataset_name", data, "--output_dir", "out", "--max_steps", "2", "--use_cpu", "true"]
    command += ["--report_to", "none", "--per_device_train_batch_size", "2", "--eval_strategy", "steps"]
    command += ["--eval_steps", "2", *(word.format(**models) for word in words)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "Different from TRL in this run" in run.stdout
    assert list((tmp_path / "out").glob("*model*.safetensors"))
