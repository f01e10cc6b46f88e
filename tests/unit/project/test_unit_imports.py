"""Unit tests start quickly: only those in tests/unit/training import torch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "tests" / "unit"


def test_only_the_training_tests_import_torch() -> None:
    # This test sees imports at the top of a file; a fixture in tests/unit/conftest.py refuses those within a test.
    files = [file for file in sorted(UNIT.rglob("*.py")) if UNIT / "training" not in file.parents]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    program = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        "    assert 'torch' not in sys.modules, f'{module} imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_is_refused_within_a_test(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "unit" / "launcher"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder.parent / "conftest.py").write_text((UNIT / "conftest.py").read_text())
    (folder / "test_one.py").write_text("def test_one() -> None:\n    import torch\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this unit test imports torch" in done.stdout
