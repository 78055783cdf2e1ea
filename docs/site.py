"""What the site is made with: the README as its first page, links between pages, and docstrings with formulas."""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(math|class|meth|func|attr|data|mod):`~?([^`]+)`")
FORMULAS = "o2o_lightning.objectives."
PAGE = re.compile(r"`docs/([\w/-]+)\.md`")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``docs/speed.md`` is a link on the site; the first page is the repository's own."""
    if page.file.src_path == "index.md":
        markdown = Path("README.md").read_text(encoding="utf-8")
    up = "../" * page.file.src_path.count("/")
    return PAGE.sub(lambda name: f"[{name[1].rpartition('/')[2].replace('-', ' ')}]({up}{name[1]}.md)", markdown)


class Roles(Extension):
    """Docstrings' ``:math:`` as formulas, their references as names, and a method's formulas by what it imports."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrites the docstring of one function, class or module."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(_plain, obj.docstring.value)
        used = [path for path in obj.imports.values() if path.startswith(FORMULAS)] if obj.is_module else []
        if used and obj.docstring and obj.path.startswith("o2o_lightning.methods."):
            links = (f"[`{path.rpartition('.')[2]}`][{path}]" for path in sorted(used))
            obj.docstring.value += f"\n\nIts formulas: {', '.join(links)}."


def _plain(role: re.Match[str]) -> str:
    kind, text = role.groups()
    return f"${text}$" if kind == "math" else f"`{text.rpartition('.')[2]}`"
