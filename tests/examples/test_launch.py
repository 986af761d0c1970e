"""The files of examples/launch: shells, YAML readers and accelerate take them, and both clusters start the same."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import yaml
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "examples" / "launch"


def test_clusters_start_what_a_laptop_starts(tmp_path: Path) -> None:
    slurm = (FOLDER / "slurm.sbatch").read_text()
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    script = pod["containers"][0]["args"][0]
    for text in (slurm, script):
        (tmp_path / "script").write_text(text)
        subprocess.run(["bash", "-n", str(tmp_path / "script")], check=True)
        assert re.search(r"torchrun(.|\n)*--rdzv_endpoint(.|\n)*-m strop dpo --config", text)
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}" in script  # where pod 0 of an indexed job is found
    assert f"--nnodes {job['spec']['completions']} " in script and job["spec"]["completionMode"] == "Indexed"


def test_engines_read_their_settings() -> None:
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml"))
    assert config.fsdp_config["fsdp_version"] == 2
    assert json.loads((FOLDER / "zero3.json").read_text())["zero_optimization"]["stage"] == 3
