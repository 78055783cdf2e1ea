"""What the site is made with: the README as its first page, links between pages, and docstrings with formulas."""

import json
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File

ROLE = re.compile(r":(math|class|meth|func|attr|data|mod):`~?([^`]+)`")
FORMULAS = "o2o_lightning.objectives."
PAGE = re.compile(r"`docs/([\w/-]+)\.md`")


def on_files(files: Any, config: Any) -> Any:
    """Each notebook is a page too."""
    for file in [*files]:
        if file.src_path.endswith(".ipynb"):
            name = file.src_path.removesuffix(".ipynb")
            text = f"{as_page(Path(file.abs_src_path))}\n\n[The notebook itself]({name.rpartition('/')[2]}.ipynb)\n"
            files.append(File.generated(config, f"{name}.md", content=text))
    return files


def as_page(notebook: Path) -> str:
    """The cells of a notebook as Markdown."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text("utf-8"))["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


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
        imported = obj.imports.values() if obj.is_module else ()
        used = [path for path in imported if path.startswith(FORMULAS) and not path.rpartition(".")[2].isupper()]
        if used and obj.docstring and obj.path.startswith("o2o_lightning.methods."):
            links = (f"[`{path.rpartition('.')[2]}`][{path}]" for path in sorted(used))
            obj.docstring.value += f"\n\nIts formulas: {', '.join(links)}."


def _plain(role: re.Match[str]) -> str:
    kind, text = role.groups()
    return f"${text}$" if kind == "math" else f"`{text.rpartition('.')[2]}`"
