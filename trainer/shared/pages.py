"""Pages for a browser, each one file: templates over one common frame with its styles.

A page needs nothing else: it has neither scripts nor links to other files, and its own policy forbids a browser to
load any. Texts of runs, devices and logs are data: the templates escape them, and show control characters.
"""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from trainer.shared.text import visible

_FRAME = Path(__file__).parent / "templates"


@cache
def page_template(path: Path) -> Template:
    """Return the template of a page, which extends `page.html.j2`."""
    environment = Environment(
        loader=FileSystemLoader([path.parent, _FRAME]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(path.name)


def _shown(value: object) -> object:
    """Return a value for the page, with control characters as text; the template escapes it after that."""
    return value if isinstance(value, Markup) else visible(str(value))
