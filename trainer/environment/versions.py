"""Which torch_npu goes with which CANN and torch: the table of torch_npu's README (August 2026)."""

import re

# Newest first. torch has the version of its torch_npu, without the .post.
RELEASES: dict[str, tuple[str, ...]] = {
    "9.1.0": ("2.12.0", "2.10.0.post4", "2.9.0.post6", "2.7.1.post8"),
    "9.0.0": ("2.9.0.post2", "2.8.0.post4", "2.7.1.post4"),
    "8.5.0": ("2.9.0", "2.8.0.post2", "2.7.1.post2", "2.6.0.post5"),
    "8.3.RC1": ("2.8.0", "2.7.1", "2.6.0.post3", "2.1.0.post17"),
    "8.2.RC1": ("2.6.0", "2.5.1.post1", "2.1.0.post13"),
    "8.1.RC1": ("2.5.1", "2.4.0.post4", "2.3.1.post6", "2.1.0.post12"),
    "8.0.0": ("2.4.0.post2", "2.3.1.post4", "2.1.0.post10"),
    "7.0.0": ("2.1.0", "2.0.1.post1", "1.11.0.post8"),
}
_OLDEST_TORCH_NPU = (2, 9)


def torch_of(torch_npu: str) -> str:
    """Return the torch that a torch_npu is built for: `2.9.0` for `2.9.0.post2`."""
    return re.split(r"\.post|[+-]", torch_npu)[0]


def cann_of(torch_npu: str) -> str | None:
    """Return the CANN that a torch_npu is made for; None if the table does not have it."""
    version = torch_npu.partition("+")[0]
    return next((cann for cann, versions in RELEASES.items() if version in versions), None)


def supported_with(cann: str) -> tuple[str, ...]:
    """Return the versions of torch_npu for this CANN that the trainer supports, the newest first."""
    versions = next((versions for release, versions in RELEASES.items() if same_release(release, cann)), ())
    return tuple(version for version in versions if _numbers(version)[:2] >= _OLDEST_TORCH_NPU)


def same_release(version: str, other: str) -> bool:
    """Return whether two versions of CANN differ only in their fixes, as 8.5.0 and 8.5.1 do."""
    return _numbers(version)[:2] == _numbers(other)[:2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
