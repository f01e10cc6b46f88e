"""The cluster's programs, built from pinned Go modules into a cache that the next start uses.

A module folder in `go/` pins one version of everything in `go.sum`. Its hash names the cache folder, so that another
version is another folder and a partial build is never mistaken for a complete one.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

MODULES = Path(__file__).parent / "go"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pnas" / "testbed"

# A server without them reports version v0.0.0, which clients that compare versions refuse.
VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
# The protocol between a device plugin and the kubelet.
DEVICE_PLUGIN_PROTOCOL = ("k8s.io/kubelet", "pkg/apis/deviceplugin/v1beta1/api.proto")

# The definitions of Kueue's objects, and its webhooks.
KUEUE_FILES = (
    *(
        f"config/components/crd/bases/kueue.x-k8s.io_{name}.yaml"
        for name in (
            *("admissionchecks", "clusterqueues", "cohorts", "localqueues", "multikueueclusters", "multikueueconfigs"),
            *("provisioningrequestconfigs", "resourceflavors", "topologies", "workloadpriorityclasses", "workloads"),
        )
    ),
    "config/components/webhook/manifests.yaml",
)
POD_MONITOR = "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"
VOLCANO_TYPES = ("batch/v1alpha1", "bus/v1alpha1", "scheduling/v1beta1")


class BuildError(Exception):
    """A program cannot be built; the message is one line and names the log."""


def kubernetes() -> Path:
    """Return the folder of kube-apiserver, -controller-manager, -scheduler, -proxy, kubelet, kubectl, and `api.proto`.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    version = pinned_version(MODULES / "kubernetes", "k8s.io/kubernetes")
    major, minor, _patch = version.removeprefix("v").split(".")
    facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = " ".join(f"-X {package}.{name}={value}" for package in VERSION_PACKAGES for name, value in facts.items())
    return _build_once("kubernetes", ldflags=f"-s -w {flags}", files=(DEVICE_PLUGIN_PROTOCOL,))


def coredns() -> Path:
    """Return the folder of `coredns`, the cluster's DNS server, with the one plugin that pods need.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    return _build_once("coredns", ldflags="-s -w", files=())


def kueue() -> Path:
    """Return the folder of `kueue`, Kueue's only process, its definitions, and its webhooks in `manifests.yaml`.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    files = [("sigs.k8s.io/kueue", path) for path in KUEUE_FILES]
    return _build_once("kueue", ldflags="-s -w", files=files)


def prometheus() -> Path:
    """Return the folder of `prometheus`, the linter of `promtool check metrics`, and the definition of a PodMonitor.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    files = [("github.com/prometheus-operator/prometheus-operator", POD_MONITOR)]
    return _build_once("prometheus", ldflags="-s -w", files=files)


def volcano_crds() -> Path:
    """Return the folder of the definitions of Job, Command, PodGroup and Queue, made from Volcano's own Go types.

    Raises:
        BuildError: Go is missing, or the definitions cannot be made.
    """
    source = MODULES / "volcano"
    packages = ";".join(f"volcano.sh/apis/pkg/apis/{name}" for name in VOLCANO_TYPES)
    generate = f"crd:crdVersions=v1,generateEmbeddedObjectMeta=true,maxDescLen=0 paths={packages}"
    digest = hashlib.sha256((source / "go.mod").read_bytes() + (source / "go.sum").read_bytes() + generate.encode())
    folder = CACHE / f"volcano-{digest.hexdigest()[:12]}"
    with locked(CACHE / "volcano.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _go(source, "tool", "controller-gen", *generate.split(), f"output:crd:artifacts:config={partial}")
            partial.rename(folder)
    return folder


def client(version: str) -> Path:
    """Return the folder of a version of Kubernetes' Python client and its dependencies, for a PYTHONPATH.

    Raises:
        BuildError: the client cannot be installed.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = CACHE / f"client-{version}-python{python}"
    with locked(CACHE / "client.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command = [*install, "--target", str(partial), f"kubernetes=={version}"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                last = (result.stderr.splitlines() or ["no output"])[-1]
                raise BuildError(f"pip install kubernetes=={version} failed: {last}")
            partial.rename(folder)
    return folder


def helm3() -> Path:
    """Return the path of Helm 3.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    kubernetes_version = pinned_version(MODULES / "helm3", "k8s.io/client-go")
    # client-go 0.35 belongs to Kubernetes 1.35. Without these flags, Helm renders and lints for 1.20.
    minor = kubernetes_version.split(".")[1]
    packages = ("pkg/chartutil", "pkg/lint/rules")
    facts = {f"{package}.k8sVersionMajor": "1" for package in packages}
    facts |= {f"{package}.k8sVersionMinor": minor for package in packages}
    return _helm(3, facts)


def helm4() -> Path:
    """Return the path of Helm 4.

    Raises:
        BuildError: Go is missing, or the build failed.
    """
    return _helm(4, {})


@contextmanager
def background_builds() -> Iterator[None]:
    """Build the artifacts of later tests in the background, one after the other, while the context lasts.

    When the context ends, Go's cache keeps the finished parts. A test that needs one of the artifacts meanwhile waits
    for it.
    """
    script = (
        f"import {__name__} as binaries; binaries.volcano_crds(); binaries.helm3(); binaries.helm4(); binaries.kueue()"
    )
    command = [sys.executable, "-c", script]
    # A test may have set another cache for its subprocesses.
    environ = {**os.environ, "XDG_CACHE_HOME": str(CACHE.parents[1]), "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        ["nice", "-n", "19", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environ,
    ) as building:
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(building.pid, signal.SIGTERM)


def _helm(major: int, facts: Mapping[str, str]) -> Path:
    module = f"helm.sh/helm/v{major}"
    variables = {"internal/version.version": pinned_version(MODULES / f"helm{major}", module), **facts}
    flags = " ".join(f"-X {module}/{name}={value}" for name, value in variables.items())
    return _build_once(f"helm{major}", ldflags=f"-s -w {flags}") / "helm"


def _build_once(module: str, *, ldflags: str, files: Sequence[tuple[str, str]] = ()) -> Path:
    """Build every tool of a module once; other processes that need the tools wait for the build.

    Args:
        files: files to copy next to the tools: a required module and a path in it.
    """
    source = MODULES / module
    pinning = (source / "go.mod", source / "go.sum", *sorted(source.glob("*.go")))
    pinned = b"".join(path.read_bytes() for path in pinning)
    digest = hashlib.sha256(pinned + ldflags.encode())
    folder = CACHE / f"{module}-{digest.hexdigest()[:12]}"
    with locked(CACHE / f"{module}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                _build(source, partial, ldflags)
                for required, path in files:
                    module_folder = _go(source, "list", "-m", "-f", "{{.Dir}}", required)
                    shutil.copyfile(Path(module_folder.strip()) / path, partial / Path(path).name)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _build(source: Path, to: Path, ldflags: str) -> None:
    # A module without tools is itself a program.
    target = "tool" if "\ntool " in (source / "go.mod").read_text() else "."
    _go(source, "build", "-p", str(os.cpu_count() or 1), "-trimpath", "-ldflags", ldflags, "-o", f"{to}/", target)


def _go(source: Path, *words: str) -> str:
    """Run go and return its output."""
    if shutil.which("go") is None:
        raise BuildError("go is not installed: install Go 1.26 (1.27's JSON encoder breaks the API server's schema)")
    environ = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    result = subprocess.run(["go", *words], cwd=source, capture_output=True, text=True, check=False, env=environ)
    if result.returncode != 0:
        log = CACHE / f"{source.name}.log"
        log.write_text(result.stdout + result.stderr)
        last = (result.stderr.splitlines() or ["no output"])[-1]
        raise BuildError(f"go {words[0]} of {source.name} failed: {last} (all of it: {log})")
    return result.stdout


def pinned_version(source: Path, module: str) -> str:
    """Return the version of a module that the folder's go.mod names."""
    words = next(line.split() for line in (source / "go.mod").read_text().splitlines() if f"{module} v" in line)
    return words[words.index(module) + 1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this file's lock, for which other processes on this machine wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
