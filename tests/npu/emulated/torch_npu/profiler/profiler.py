"""A profile and its analysis: recorded in FRAMEWORK/, read into ASCEND_PROFILER_OUTPUT/, as torch_npu's are."""

import csv
import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Any

import torch.profiler
from torch.profiler import ProfilerAction

_RECORDED, _RESULTS = Path("FRAMEWORK", "trace.json"), "ASCEND_PROFILER_OUTPUT"
_COLUMNS = ("Device_id", "Name", "Type", "Accelerator Core", "Start Time(us)", "Duration(us)", "Wait Time(us)")
_folders: list[Path] = []
"""The folder that `tensorboard_trace_handler` has named last: one for the process, as in torch_npu."""


class ProfilerActivity(Enum):
    """What a profile records."""

    CPU = 0
    NPU = 1


def _no_exception(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def printing(*args: Any, **values: Any) -> Any:
        try:
            return function(*args, **values)
        except Exception as error:  # noqa: BLE001  # as torch_npu does
            print(f"[ERROR] Call {function.__name__} failed. Exception: {error}")
            return None

    return printing


@_no_exception
def tensorboard_trace_handler(
    dir_name: str | None = None, worker_name: str | None = None, analyse_flag: bool = True, async_mode: bool = False
) -> Callable[[Any], None]:
    """Have the next profiles recorded in a folder; return a function that has one analysed."""
    _folders[:] = [Path(dir_name or ".")]

    def handle(prof_inst: "profile") -> None:
        if analyse_flag:
            analyse(str(prof_inst.folder))

    return handle


class profile:  # noqa: N801  # the name of the real one
    """A profile of some steps."""

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[..., Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        experimental_config: Any = None,
        use_cuda: bool | None = None,
    ) -> None:
        self.folder = Path()
        self._on_trace_ready = on_trace_ready
        cpu = [torch.profiler.ProfilerActivity.CPU]
        self._profile = torch.profiler.profile(activities=cpu, schedule=schedule, on_trace_ready=self._save)

    @_no_exception
    def start(self) -> None:
        name = f"{socket.gethostname()}_{os.getpid()}_{time.strftime('%Y%m%d%H%M%S')}000_ascend_pt"
        self.folder = (_folders or [Path()])[0] / name
        (self.folder / _RECORDED.parent).mkdir(parents=True)
        self._profile.start()

    @_no_exception
    def step(self) -> None:
        self._profile.step()

    @_no_exception
    def stop(self) -> None:
        self._profile.stop()

    def _save(self, _profile: Any) -> None:
        self._profile.export_chrome_trace(str(self.folder / _RECORDED))
        if self._on_trace_ready:
            self._on_trace_ready(self)


@_no_exception
def analyse(profiler_path: str, max_process_number: int = 4, export_type: str | list[str] | None = None) -> None:
    """Read each profile in a folder: an operator of the CPU stands for a kernel."""
    for recorded in Path(profiler_path).glob(f"*/{_RECORDED}"):
        text = recorded.read_text(encoding="utf-8")
        results = recorded.parents[1] / _RESULTS
        results.mkdir()
        (results / "trace_view.json").write_text(text, encoding="utf-8")
        with (results / "kernel_details.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(_COLUMNS)
            for event in json.loads(text)["traceEvents"]:
                if event.get("cat") == "cpu_op" and event["name"].startswith("aten::"):
                    kind = event["name"].removeprefix("aten::")
                    rows.writerow((0, f"aclnn_{kind}", kind, "AI_CORE", event["ts"], event["dur"], 0))
