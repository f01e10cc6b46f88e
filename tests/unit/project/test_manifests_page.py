"""k8s/manifests/ contains the manifests that the launcher renders."""

import pytest

from docs.manifests import FOLDER, files


@pytest.mark.parametrize("name", sorted(files()))
def test_no_file_is_stale(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == files()[name], "write it again: python -m docs.manifests"


def test_no_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(files())
