"""The wheel is the whole program: installed outside the checkout, it works in any folder, whatever files lie there."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
SHADOW = 'raise SystemExit("a file of the working folder was imported")\n'
SMALL = (
    *("--backend", "local", "--device", "cpu", "--npus", "1", "--threads", "1", "--mode", "performance"),
    *("--model", "pnasnet5tiny", "--image-size", "32", "--batch-size", "2", "--steps", "2", "--warmup-steps", "1"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new environment with the wheel; it borrows the other packages from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    # A build writes into its source folder, so it gets a copy of the checkout.
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to((ROOT / name).readlink())
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("pnas-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    borrowed = dict.fromkeys(path for path in sys.path if path.endswith("site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    install = ("install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    subprocess.run([*pip, "--python", str(folder / "venv" / "bin" / "python"), *install], check=True)
    return folder / "venv"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with files that are named as modules, and with a few images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.startswith(("PNAS_", "KUBE")):
            monkeypatch.delenv(name)
    for name in ("trainer", "launcher", "yaml", "torch", "json"):
        (tmp_path / f"{name}.py").write_text(SHADOW)
    for split in ("train", "val"):
        for label in range(2):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for number in range(8):
                image = Image.new("RGB", (40, 36), (90 * label, 20 * number, 60))
                image.save(tmp_path / "data" / split / str(label) / f"{number}.JPEG")
    return tmp_path


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_contains_only_the_two_packages(installed: Path) -> None:
    (packages,) = installed.glob("lib/python*/site-packages")
    names = {path.name for path in packages.iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert names == {"launcher", "trainer"}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("backend", ["batch", "volcano"])
def test_the_installed_launcher_renders_the_same_manifests_as_the_checkout(installed: Path, backend: str) -> None:
    words = ("render", "--npus", "8", "--image", "registry.example/pnas:0.1.0", "--backend", backend)
    checkout = subprocess.run(
        [sys.executable, "-m", "launcher", *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert run(installed / "bin" / "pnas", *words) == checkout.stdout


@pytest.mark.usefixtures("folder")
def test_the_installed_programs_have_the_profiles_and_name_themselves(installed: Path) -> None:
    assert "batch_size" in run(installed / "bin" / "pnas", "config", "show", "--profile", "seed")
    assert run(installed / "bin" / "pnas", "--help").startswith("Usage: pnas COMMAND")
    for words in ((), ("predict",), ("export",)):
        page = run(installed / "bin" / "pnas-trainer", *words, "--help")
        assert page.startswith(" ".join(("Usage: pnas-trainer", *words)))
        assert "python -m trainer" not in page
    (start,) = installed.glob("lib/python*/site-packages/trainer/shared/start.py")
    assert run(installed / "bin" / "python", start, "trainer.cli", "--help").startswith("Usage: pnas-trainer")
    submit = ("submit", "--backend", "local", "--data-path", ".")
    hint = subprocess.run((installed / "bin" / "pnas", *submit), capture_output=True, text=True, check=False).stderr
    assert "(see `pnas-trainer data --help`)" in hint


@pytest.mark.parametrize("program", ["script", "module"])
def test_no_file_in_the_working_folder_takes_the_place_of_a_module(
    installed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    launcher: Sequence[str | Path] = (installed / "bin" / "pnas",)
    trainer: Sequence[str | Path] = (installed / "bin" / "pnas-trainer",)
    if program == "module":
        (folder / "launcher.py").unlink()  # Python itself prefers it to the launcher
        launcher = trainer = (installed / "bin" / "python", "-m", "launcher")
        # An empty part of this variable is the working folder.
        monkeypatch.setenv("PYTHONPATH", f":{folder / 'data'}")
        for name in ("yaml", "torch", "json"):
            (folder / f"{name}.py").unlink()
    # The job's runner, the trainer and its worker start in this folder too.
    run(*launcher, "submit", *SMALL, "--name", "job", "--data-path", "data")
    job = json.loads(run(*launcher, "status", "job", "--json"))
    assert job["status"]["phase"] == "Succeeded"
    if program == "script":
        assert "32 images read" in run(*trainer, "data", "verify", "data")
