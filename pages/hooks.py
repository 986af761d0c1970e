"""What mkdocs calls while it builds the site."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from pages import mathematics, methods, metrics, reference, settings
from strop.methods.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]
LINK_INTO_DOCS = re.compile(r"\]\(docs/([\w/.#-]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """The pages that are no files."""
    made: dict[str, Callable[[], str]] = {
        "index.md": home,
        "metrics.md": metrics.page,
        "mathematics.md": mathematics.page,
        "settings.md": settings.page,
        "contributing.md": lambda: (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        **{f"methods/{method.verb}.md": lambda method=method: methods.page(method) for method in METHODS},
        **{f"reference/{room}.md": lambda room=room: reference.page(room) for room in reference.ROOMS},
    }
    for path, write in made.items():
        files.append(File.generated(config, path, content=write()))
    return files


def home() -> str:
    """The README; its links lead into the docs from one folder above."""
    return LINK_INTO_DOCS.sub(r"](\1)", (ROOT / "README.md").read_text(encoding="utf-8")).replace(
        "](CONTRIBUTING.md)", "](contributing.md)"
    )


def on_post_build(config: Any) -> None:
    """llms.txt: what stands where, for programs that read the site, with every page's text beside it."""
    docs, out = Path(config.docs_dir), Path(config.site_dir)
    lines = ["# strop", "", f"> {config.site_description}", "", "## Pages", ""]
    whole = []
    for page in sorted(docs.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        title = next(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        lines.append(f"- [{title}]({page.stem}/)")
        whole.append(text)
    lines += [f"- [{method.verb}: {method.summary}](methods/{method.verb}/)" for method in METHODS]
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "llms-full.txt").write_text("\n\n".join([home(), *whole]), encoding="utf-8")


def on_page_markdown(markdown: str, **given: Any) -> str:
    """A page of docs/ as the site has it: what lies one folder above there lies beside it here."""
    return markdown.replace("](../CONTRIBUTING.md)", "](contributing.md)")
