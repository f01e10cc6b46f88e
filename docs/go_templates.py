"""The launcher's Jinja templates as Helm's: one pod template, written once, for both.

k8s/templates/ uses little of Jinja, and this knows no more than that: what it does not know is an error, so that a new
form is translated on purpose. Values are `$.name` in Helm, and go through `toJson` as they go through `tojson` here.
"""

import re
from collections.abc import Callable
from pathlib import Path

TEMPLATES = Path(__file__).parents[1] / "k8s" / "templates"
_WRITTEN = "{{- /* Written by `python -m docs.chart` from k8s/templates/%s. */ -}}\n"
_PART = re.compile(r"(\{#-.*?-#\}|\{%.*?%\}|\{\{.*?\}\})", re.DOTALL)
_INCLUDED = re.compile(
    r'\n *\{%- filter indent\((?P<width>\d+)\) %\}\n\{% include "_(?P<name>\w+)\.yaml\.j2" %\}\n\{%- endfilter %\}'
)
_NAME = r"[a-z_.]+"


def translated(name: str) -> str:
    """The template of that name as a definition `pnas.<name>`.

    Raises:
        ValueError: it has a form that is not known here.
    """
    source = (TEMPLATES / f"{name}.yaml.j2").read_text(encoding="utf-8")
    source = _INCLUDED.sub(r'\n{{- include "pnas.\g<name>" $ | nindent \g<width> }}', source)
    loops: list[str] = []
    body = "".join(_translate(part, loops) if index % 2 else part for index, part in enumerate(_PART.split(source)))
    begin = f'{{{{- define "pnas.{name.removeprefix("_")}" -}}}}\n{_WRITTEN % f"{name}.yaml.j2"}'
    return f"{begin}{body.strip()}\n{{{{- end }}}}\n"


def _translate(part: str, loops: list[str]) -> str:
    if part.startswith("{#-"):
        return "{{- /* " + " ".join(part[3:-3].split()) + " */ -}}\n"
    if part.startswith("{{- include"):
        return part
    for form, write in _FORMS:
        if found := re.fullmatch(form, part):
            return write(found, loops)
    raise ValueError(f"{part}: no such form is known; add it to docs/go_templates.py")


def _place(name: str, loops: list[str]) -> str:
    """A loop's variable, or one of the values."""
    return f"${name}" if name.partition(".")[0] in loops else f"$.{name}"


def _for(found: re.Match[str], loops: list[str]) -> str:
    loops.append(found[1])
    return f"{{{{- range ${found[1]} := $.{found[2]} }}}}"


_FORMS: list[tuple[str, Callable[[re.Match[str], list[str]], str]]] = [
    (rf"\{{\{{ ({_NAME}) \| tojson \}}\}}", lambda found, loops: f"{{{{ toJson {_place(found[1], loops)} }}}}"),
    (
        rf"\{{\{{ \(({_NAME}) \* ({_NAME})\) \| tojson \}}\}}",
        lambda found, _: f"{{{{ mul (int $.{found[1]}) (int $.{found[2]}) }}}}",
    ),
    (
        rf"\{{\{{ \(({_NAME}) \+ (\d+)\) \| tojson \}}\}}",
        lambda found, _: f"{{{{ add (int $.{found[1]}) {found[2]} }}}}",
    ),
    (rf"\{{%- if ({_NAME}) is not none %\}}", lambda found, _: f'{{{{- if not (kindIs "invalid" $.{found[1]}) }}}}'),
    (rf"\{{%- if ({_NAME}) > (\d+) %\}}", lambda found, _: f"{{{{- if gt (int $.{found[1]}) {found[2]} }}}}"),
    (rf"\{{%- if not ({_NAME}) %\}}", lambda found, _: f"{{{{- if not $.{found[1]} }}}}"),
    (rf"\{{%- if ({_NAME}) %\}}", lambda found, _: f"{{{{- if $.{found[1]} }}}}"),
    (rf"\{{%- for (\w+) in ({_NAME}) %\}}", _for),
    (r"\{%- end(if|for) %\}", lambda _found, _loops: "{{- end }}"),
]
