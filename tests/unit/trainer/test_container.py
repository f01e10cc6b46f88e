"""A container's limits are found in its control groups, however deep they lie: the smallest on the path counts."""

from pathlib import Path

import pytest

from trainer.shared.container import cpu_quota, free_memory_bytes, memory_bytes, usable_processors, within_quota

V1_MOUNT = "33 31 0:29 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,{controller}"
V2_MOUNT = "41 31 0:38 {root} {mount} rw - cgroup2 cgroup2 rw,nsdelegate"
HALF = {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}
TWO = {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "200000"}
NO_LIMIT = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}


def process(
    folder: Path,
    groups: dict[str, dict[str, str]],
    *,
    membership: str,
    mount: str = V1_MOUNT,
    root: str = "/",
    controller: str = "cpu,cpuacct",
    place: str = "sys/fs/cgroup",
) -> Path:
    """Write the control groups below a mount point and a process's two files about them; return the process's folder.

    Args:
        groups: The files of each group, by the group's path below the mount point.
        membership: The process's line in /proc/self/cgroup.
        root: The group at the mount point.
    """
    mounted = folder / place
    for group, files in groups.items():
        (mounted / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (mounted / group / name).write_text(text + "\n")
    line = mount.format(root=root, mount=str(mounted).replace(" ", r"\040"), controller=controller)
    (folder / "self").mkdir()
    (folder / "self" / "mountinfo").write_text(f"23 1 8:1 / / rw - ext4 /dev/sda rw\n{line}\n")
    (folder / "self" / "cgroup").write_text(f"9:name=systemd:/\n{membership}\n")
    return folder / "self"


@pytest.mark.parametrize(
    ("groups", "membership", "options", "quota"),
    [
        ({"": HALF}, "4:cpu,cpuacct:/", {}, 0.5),
        ({"": NO_LIMIT, "job": NO_LIMIT}, "4:cpu,cpuacct:/job", {}, None),
        # Nested: the pod's limit is below its container's, and the other way round.
        ({"pods": NO_LIMIT, "pods/one": HALF, "pods/one/main": TWO}, "4:cpu,cpuacct:/pods/one/main", {}, 0.5),
        ({"pods": NO_LIMIT, "pods/one": TWO, "pods/one/main": HALF}, "4:cpuacct,cpu:/pods/one/main", {}, 0.5),
        # The container sees its own group as the root of the mount, with the host's path in /proc.
        ({"": TWO}, "4:cpu,cpuacct:/docker/ab", {"root": "/docker/ab"}, 2.0),
        ({"": TWO, "x": HALF}, "4:cpu,cpuacct:/docker/ab/x", {"root": "/docker/ab"}, 0.5),
        # A group outside the mount, by another path or above a namespace's root.
        ({"": TWO}, "4:cpu,cpuacct:/elsewhere", {"root": "/docker/ab"}, 2.0),
        ({"": TWO, "../other": HALF}, "4:cpu,cpuacct:/../other", {}, 2.0),
        ({"": HALF}, "4:cpuset:/", {"controller": "cpuset"}, None),
        ({"": HALF}, "4:cpu:/", {"controller": "cpu", "place": "a folder/cpu"}, 0.5),
        ({"": {"cpu.cfs_quota_us": "50000"}}, "4:cpu:/", {"controller": "cpu"}, 0.5),
        ({"": {}}, "4:cpu,cpuacct:/", {}, None),
        # Version 2.
        ({"": {}, "job": {"cpu.max": "150000 100000"}}, "0::/job", {"mount": V2_MOUNT}, 1.5),
        ({"job": {"cpu.max": "max 100000"}}, "0::/job", {"mount": V2_MOUNT}, None),
        ({"a": {"cpu.max": "25000 50000"}, "a/b": {"cpu.max": "max 50000"}}, "0::/a/b", {"mount": V2_MOUNT}, 0.5),
        ({"a": {"cpu.max": "100000"}, "a/b": {}}, "0::/a/b", {"mount": V2_MOUNT}, 1.0),
        ({"": {"cpu.max": "50000 100000"}}, "0::/../other", {"mount": V2_MOUNT}, 0.5),
        ({"": {"cpu.max": "nonsense"}}, "0::/", {"mount": V2_MOUNT}, None),
    ],
)
def test_the_smallest_cpu_quota_on_the_path_is_found(
    tmp_path: Path, groups: dict[str, dict[str, str]], membership: str, options: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(process(tmp_path, groups, membership=membership, **options)) == quota


@pytest.mark.parametrize(
    ("cpus", "quota", "usable"), [(2, None, 2), (2, 0.5, 1), (2, 1.0, 1), (8, 2.5, 2), (8, 16.0, 8), (1, 0.01, 1)]
)
def test_a_quota_lets_whole_cpus_work_and_at_least_one(cpus: int, quota: float | None, usable: int) -> None:
    assert within_quota(cpus, quota) == usable


def test_a_program_uses_the_cpus_of_its_affinity_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 5, 6})
    for quota, usable in ((None, 4), (1.5, 1), (16.0, 4)):
        monkeypatch.setattr("trainer.shared.container.cpu_quota", lambda quota=quota: quota)
        assert usable_processors() == usable


def test_the_smallest_memory_limit_on_the_path_is_found(tmp_path: Path) -> None:
    small, large = str(2**30), str(2**62)
    for number, (name, mount, membership) in enumerate(
        [("memory.limit_in_bytes", V1_MOUNT, "5:memory:/a/b"), ("memory.max", V2_MOUNT, "0::/a/b")]
    ):
        groups = {"": {}, "a": {name: small}, "a/b": {name: large if mount == V1_MOUNT else "max"}}
        (folder := tmp_path / str(number)).mkdir()
        assert memory_bytes(process(folder, groups, membership=membership, mount=mount, controller="memory")) == 2**30


@pytest.mark.parametrize(
    ("files", "mount", "membership"),
    [
        ({"memory.max": 900, "memory.current": 700, "memory.stat": "anon 5\ninactive_file 100"}, V2_MOUNT, "0::/a/b"),
        (
            {
                "memory.limit_in_bytes": 900,
                "memory.usage_in_bytes": 700,
                "memory.stat": "inactive_file 1\ntotal_inactive_file 100",
            },
            V1_MOUNT,
            "5:memory:/a/b",
        ),
    ],
)
def test_free_memory_is_what_the_container_or_the_machine_has_left(
    tmp_path: Path, files: dict[str, object], mount: str, membership: str
) -> None:
    groups = {"a/b": {name: str(value) for name, value in files.items()}}
    folder = process(tmp_path, groups, membership=membership, mount=mount, controller="memory")
    (meminfo := tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       2 kB\n")
    assert free_memory_bytes(folder, meminfo) == 300
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       0 kB\n")
    assert free_memory_bytes(folder, meminfo) == 0
    assert 0 < free_memory_bytes() <= memory_bytes()


def test_a_machine_without_control_groups_has_its_own_size(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert 2**28 < memory_bytes(tmp_path) < 2**50
    assert usable_processors() >= 1
