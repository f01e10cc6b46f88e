"""Check the English of comments, docstrings, messages, test names and Markdown: `python -m tests.plain_english`.

Readers of this project speak many languages. The words below are correct English, but they slow down a reader whose
English is a second language, and each has a plain replacement. Text in backticks is code, and is not checked.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PATHS = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"),
    *("benchmarks", "charts", "docs", "launcher", "requirements", "tests", "trainer"),
)
PROGRAMS = ("launcher", "trainer")
"""The packages whose strings a user reads: error messages, help texts, notices."""
NAME_IT = "name the person or the program, such as the user, the kubelet, a rank"
# A pattern, and what to write in its place. A space stands for any white space.
PLAIN = {
    r"\banew\b": "again",
    r"\bbesides?\b": "next to",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(no|some|any|every)body\b": NAME_IT,
    r"\b(whoever|whomever|whosoever)\b": NAME_IT,
    r"(?-i:(^|[.:;] )(Who|What) (?!is\b|are\b|was\b|does\b|do\b|to\b|if\b)[a-z]+)": "begin with the subject: a noun",
    r"(?-i:\b(is|are|was|were|has|have|had|gives?|with) none\b)": "write no …, or not a …",
    r"\b(?!its?\b|let\b|left\b|stands?\b|runs?\b)[\w`]+ alone\b": "only, before the word that it limits",
    r"\bso (many|much|long|often)\b": "say the number or the time",
    r"\b(those|the one) (that|who|which|of)\b": "repeat the noun",
    r"\bthat of\b": "repeat the noun",
    r"\b(is|are|was|were) to (be|have)\b": "must, or can",
    r"\b(bears?|borne|wish(es|ed)?|curious|murmurs?|foresees?|foreseen)\b": "use the field's word",
    r", as (it|they|he|she) (is|are|was|were|does|do|did|has|have)\b": "like …, or make it a sentence",
    r"\bof (its|their|our|your|his) own\b": "own, before the noun, or separate",
    r"\b(thereof|therein|thereby|whereof|whereby|hereby|hence|thence|lest|ere|albeit|nought)\b": "a simpler word",
    r"\band that (is|are|was|has|have|it|they|the|a)\b": "begin a sentence",
    r"\bmay not\b": "must not, cannot, might not, or has no right to",
}
_COMPILED = [
    (re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE | re.MULTILINE), word) for pattern, word in PLAIN.items()
]


class Finding(NamedTuple):
    """Words that have a plain replacement."""

    file: Path
    line: int
    words: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words!r}: {self.advice}"


def main(words: Sequence[str]) -> int:
    """Print the findings in the files and folders, and return 1 if there are any."""
    files = [file for word in words or PATHS for file in _files(Path(word))]
    findings = [finding for file in files for finding in check(file, file.read_text(encoding="utf-8"))]
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"plain English: {len(files)} files, {len(findings)} findings\n")
    return 1 if findings else 0


def check(file: Path, source: str) -> Iterator[Finding]:
    """Yield what the source of a Python or Markdown file should say in plainer words."""
    texts = [*_of_python(source)] if file.suffix == ".py" else [*_of_markdown(source)]
    if file.suffix == ".py" and file.parts[0] in PROGRAMS:
        texts += _messages(source)
    for first_line, text in texts:
        prose = re.sub(r"`[^`]*`", lambda code: re.sub(r"\S", "`", code[0]), text)
        for pattern, advice in _COMPILED:
            for match in pattern.finditer(prose):
                line = first_line + prose.count("\n", 0, match.end())
                yield Finding(file, line, " ".join(match[0].split()).lstrip(".:; "), advice)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for kind in ("*.py", "*.md") for file in path.rglob(kind))


def _of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield each docstring, each block of comments and each test's name, with the number of its first line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        # A docstring of a module, a class, a function or an attribute is an expression without an assignment.
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, "\n".join(lines[node.lineno - 1 : node.end_lineno]).replace('"""', "")
    block: list[str] = []
    first_line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if first_line + len(block) != token.start[0]:
            yield first_line, "\n".join(block)
            block, first_line = [], token.start[0]
        block.append(token.string.lstrip("# "))
    yield first_line, "\n".join(block)


def _messages(source: str) -> Iterator[tuple[int, str]]:
    """Yield each string, or part of one between values, with its line."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def _of_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Yield each paragraph outside code, with the number of its first line."""
    source = re.sub(r"^```.*?^```$", lambda code: "\n" * code[0].count("\n"), source, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.finditer(r"(?:^.*\S.*\n?)+", source, re.MULTILINE):
        yield source.count("\n", 0, paragraph.start()) + 1, paragraph[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
