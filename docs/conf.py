"""How Sphinx builds these pages: `make docs`."""

from typing import Any

from jacolbert_rag import __version__

project = "jacolbert_rag"
author = "The jacolbert_rag authors"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
html_theme = "furo"
html_title = "jacolbert_rag"
html_show_sourcelink = False
html_static_path: list[str] = []
html_theme_options = {
    # The reader's own fonts: these pages ask nothing of anywhere.
    "light_css_variables": {"font-stack": "system-ui, 'Noto Sans CJK JP', sans-serif"},
}
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
# Frameworks' base classes bring hundreds of members of their own.
autodoc_inherit_docstrings = False
nitpicky = False


def as_code(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """An indented block below a blank line is code, as readers of the source take it."""
    for i in range(len(lines) - 1, 1, -1):
        above = next((line for line in reversed(lines[:i]) if line.strip()), "")
        begins = lines[i].startswith("    ") and not lines[i - 1].strip() and not above.startswith("    ")
        if begins and not above.endswith(":"):
            lines[i:i] = ["::", ""]


def setup(app: Any) -> None:
    """See Sphinx; before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", as_code, priority=400)
