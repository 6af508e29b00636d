"""Links between Markdown files of the repository, as links between the site's pages or to the files on GitHub.

The pages of `docs/` are read on GitHub too, where a link is a path from the file that holds it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

REPOSITORY = Path(__file__).resolve().parents[2]

GITHUB = "https://github.com/kdschemes/kdschemes"

COPIES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "slurm_scripts": "slurm/README.md"}
"""Pages that are copies of files outside `docs/`."""

ELSEWHERE = {"README.md": "index", "docs/losses.md": "methods/index"} | {file: page for page, file in COPIES.items()}
"""Pages of the site by the file that they stand for."""

LINK = re.compile(
    r"(!?)(\[(?:[^\[\]]|\[[^\[\]]*\]|!\[[^\]]*\]\([^)]*\))*\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)"
)


def origin(page: str) -> str:
    """Return the file of the repository whose links a page has: for the page of a method or loss, its card."""
    family, _, name = page.partition("/")
    if family in ("methods", "losses") and name != "index":
        return f"kdschemes/cards/{page}.md"
    return COPIES.get(page, f"docs/{page}.md")


def page_of(file: str) -> str | None:
    """Return the page that stands for a file of the repository, if there is one."""
    if file in ELSEWHERE:
        return ELSEWHERE[file]
    if match := re.fullmatch(r"(?:kdschemes/cards|docs)/(.+)\.md", file):
        return match[1]
    return None


def on_github(path: str) -> str:
    """Return the address of a file or folder of the repository."""
    return f"{GITHUB}/{'tree' if (REPOSITORY / path).is_dir() else 'blob'}/main/{path}"


def rewrite(text: str, page: str) -> str:
    """Rewrite the links of a page. Images keep their file, and what leads nowhere stays, for Sphinx to report."""
    home, here = posixpath.dirname(origin(page)), posixpath.dirname(page)

    def target(match: re.Match[str]) -> str:
        image, words, path, anchor = match[1], match[2], match[3], match[4] or ""
        file = posixpath.normpath(posixpath.join(home, path))
        if not (REPOSITORY / file).exists():
            return match[0]
        if image:
            found = posixpath.relpath(file, posixpath.join("docs", here))
        elif name := page_of(file):
            found = posixpath.relpath(f"{name}.md", here or ".") + (anchor if file not in ELSEWHERE else "")
        else:
            found = on_github(file) + anchor
        return f"{image}{words}{found})"

    return LINK.sub(target, text)


def _read(_app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = rewrite(content[0], page)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
