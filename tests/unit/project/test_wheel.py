"""pip installs the whole program: without the checkout, the wheel renders manifests and reads its profiles."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with only the contents of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    # A build writes into its source folder, so it gets a copy of the checkout.
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", *build, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("pnas-*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "installed")
    return folder / "installed"


def _run(installed: Path, *words: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PNAS_")}
    # Python looks in the working directory before it looks in the checkout, which is installed too.
    done = subprocess.run(
        [sys.executable, *words], cwd=installed, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_renders_the_same_manifests_as_the_checkout(installed: Path) -> None:
    words = ("render", "--npus", "8", "--nodes", "2", "--image", "registry.example/pnas:0.1.0")
    for backend in ("batch", "volcano"):
        checkout = subprocess.run(
            [sys.executable, "-m", "launcher", *words, "--backend", backend],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        assert _run(installed, "-m", "launcher", *words, "--backend", backend) == checkout.stdout


def test_the_wheel_contains_the_profiles(installed: Path) -> None:
    assert "batch-size" in _run(installed, "-m", "launcher", "config", "show", "--profile", "seed").replace("_", "-")


def test_the_wheel_contains_only_the_two_packages(installed: Path) -> None:
    file = _run(installed, "-c", "import launcher; print(launcher.__file__)")
    assert Path(file.strip()) == installed / "launcher" / "__init__.py"
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "launcher",
        "trainer",
    }
