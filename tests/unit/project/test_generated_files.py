"""The generated files say what the code says."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs import manifests, options, pictures
from docs.__main__ import ROOT, files, main, stale_files
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name


def test_no_file_is_stale_and_none_is_left_over() -> None:
    assert [str(path.relative_to(ROOT)) for path in stale_files()] == [], "run `make generate`"


def test_a_stale_file_and_a_leftover_are_named_and_then_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, folder = tmp_path / "options.md", tmp_path / "manifests"
    folder.mkdir()
    (folder / "old.yaml").touch()
    monkeypatch.setattr("docs.__main__.ROOT", tmp_path)
    monkeypatch.setattr("docs.__main__._FOLDERS", (folder,))
    monkeypatch.setattr("docs.__main__.files", lambda: {page: "text\n"})
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == "stale: manifests/old.yaml options.md: run `make generate`\n"
    assert not page.exists()
    assert main([]) == 0
    assert (page.read_text(), list(folder.iterdir())) == ("text\n", [])
    assert main(["--check"]) == 0


def test_a_picture_is_whole_and_needs_no_other_file() -> None:
    for path, text in pictures.files().items():
        for part in ElementTree.fromstring(text).iter():
            links = [value for name, value in part.attrib.items() if name.endswith(("href", "src"))]
            assert links == [], path.name
        assert "url(" not in text


def test_every_option_has_its_row() -> None:
    page = files()[options.PAGE]
    for name, field in TrainConfig.model_fields.items():
        [row] = re.findall(rf"^\| `{flag_name(name)}` \|.*$", page, re.MULTILINE)
        assert (field.description or "").partition(" [default")[0] in row
    assert "| `--lr` | float > 0 | 0.4 | Peak learning rate" in page
    assert "| `--threads` | int ≥ 1 | OMP_NUM_THREADS, or the CPUs divided by the devices | CPU threads" in page


def test_every_manifest_says_how_it_is_made() -> None:
    for path, text in manifests.files().items():
        assert text.startswith("# Written by `make generate`."), path.name
