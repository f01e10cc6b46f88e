"""Each behaviour on docs/ascend.md names the check of `prove` that shows it on a node, or why no check can."""

import re
from pathlib import Path

import pytest

from trainer.proof.catalogue import CHECKS

PAGE = (Path(__file__).parents[3] / "docs" / "ascend.md").read_text(encoding="utf-8")
COLUMN = "check of `prove`"
NAMES = frozenset(check.name for check in CHECKS)


def rows() -> dict[str, str]:
    """Return for each behaviour of the table its cell about `prove`."""
    _, _, table = PAGE.partition("| behaviour |")
    header, _, *lines = table.partition("\n\n")[0].splitlines()
    place = [cell.strip() for cell in header.split(" | ")].index(COLUMN)
    cells = [re.split(r" \| ", line.strip("| ")) for line in lines]
    return {row[0]: row[place + 1] for row in cells}


def checks_in(text: str) -> set[str]:
    return {word for word in re.findall(r"`([^`]+)`", text) if word in NAMES}


@pytest.mark.parametrize("behaviour", rows())
def test_a_behaviour_names_its_checks_or_the_reason_for_none(behaviour: str) -> None:
    cell = rows()[behaviour]
    others = set(re.findall(r"`([^`]+)`", cell)) - NAMES - {"--tune"}
    assert not others, f"no such check: {others}"
    assert checks_in(cell) or re.match(r"none: (\S+ ){4}", cell), cell


def test_each_check_stands_in_the_table_or_among_the_checks_of_health() -> None:
    (health,) = re.findall(r"Checks of a node's health[^:]*: (.*?)\. ", PAGE, re.DOTALL)
    of_rows = set().union(*map(checks_in, rows().values()))
    assert of_rows.isdisjoint(checks_in(health)), "the table is enough"
    assert of_rows | checks_in(health) == NAMES


def test_the_page_begins_with_the_command() -> None:
    first = re.search(r"^\$ (.*)$", PAGE, re.MULTILINE)
    assert first is not None
    assert first[1].startswith("python -m trainer prove")
    assert PAGE.index(first[1]) < 600
