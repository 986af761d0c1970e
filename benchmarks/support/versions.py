"""`make versions`: one step of every method under the oldest and the newest packages that are supported.

    python -m benchmarks.support.versions

Every set of versions gets an environment of its own in a temporary folder; what a set does not name (torch: its wheels
are large, and CPU builds of other versions are not on every index) is taken from the running environment. Results go to
`benchmarks/results/versions.json` and, as a table, into docs/support.md.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks.support.page import VERSIONS, write_page
from benchmarks.support.smoke import PACKAGES

ROOT = Path(__file__).parent.parent.parent
CHOSEN = tuple(name for name in PACKAGES if name != "torch")


def main() -> None:
    sets = {"oldest": oldest(), "newest": {name: "" for name in CHOSEN}}
    found = {}
    for name, pins in sets.items():
        print(f"{name}: {pins}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="strop-versions-") as folder:
            found[name] = smoke(Path(folder), pins)
    VERSIONS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    from benchmarks.support.__main__ import results

    write_page(results())
    failed = [f"{name}: {verb}: {word}" for name, row in found.items() for verb, word in row["found"].items()]
    sys.exit("\n".join(line for line in failed if not line.endswith(": ok")) or 0)


def oldest() -> dict[str, str]:
    """The lower bounds of pyproject.toml, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    lowest = {name: next(s.version for s in wanted[name] if s.operator == ">=") for name in CHOSEN}
    return {name: f"=={version}" for name, version in lowest.items()}


def smoke(folder: Path, pins: dict[str, str]) -> dict[str, Any]:
    """What `benchmarks.support.smoke` finds in a fresh environment with these versions."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "zz_rest.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, *(name + pin for name, pin in pins.items())], check=True)
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [str(python), "-m", "benchmarks.support.smoke"], env=env, cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
