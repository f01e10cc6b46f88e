"""Two ranks on two cores against two processes that know nothing of each other: what the exchange of gradients costs.

Each of the four processes has one thread, and trains pnasnet5mobile with the steps of a run: batches that are in memory
already, the exchange of gradients by DistributedDataParallel over gloo, the requests and figures that ranks agree on.
Both pairs stay alive and take turns. A turn is the steps between two log lines; it ends when both processes have done
them. The last figure is the floor: an all-reduce of as many bytes as there are gradients.
"""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.report import Bar, Benchmark, Figure, NotMeasuredError, Series, run
from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.distributed.process_group import join_process_group, leave_process_group, warm_up_ddp
from trainer.shared.config import TrainConfig
from trainer.topology.ports import free_port
from trainer.training.steps import train_steps
from trainer.worker.start import blank_images, build_training, make_watchdog
from trainer.worker.task import WorkerTask

PAIR, SIDE, IMAGES, CLASSES = 2, 128, 8, 1000
STEPS, ROUNDS, QUICK_ROUNDS = 4, 9, 3
"""Steps of a turn, and turns."""
BAR = 1.05
ALONE, RANKS = "independent", "ranks"
STEP, EXCHANGE, END = "step", "exchange", "end"


def measure(quick: bool) -> list[Figure]:
    """Return wall and CPU time of a step of two ranks, and of the exchange, against independent processes.

    Raises:
        NotMeasuredError: there is one core.
    """
    cores = sorted(os.sched_getaffinity(0))[:PAIR]
    if len(cores) < PAIR:
        raise NotMeasuredError("two ranks need two cores")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with ExitStack() as stack:
        alone, ranks = (stack.enter_context(_pair(cores, joined=joined)) for joined in (False, True))
        turns = [(_turn(alone, STEP), _turn(ranks, STEP), _turn(ranks, EXCHANGE)) for _ in range(rounds + 1)][1:]

    def figure(name: str, ours: int, clock: int, bar: Bar | None = None) -> Figure:
        names = ("two processes", "two ranks", "all-reduce of the gradients' bytes")
        side, peer = (Series(names[case], [turn[case][clock] for turn in turns]) for case in (ours, 0))
        return Figure(name, "s", side, peer, bar)

    return [
        figure("a step of two ranks, wall time", 1, 0, Bar(BAR)),
        figure("a step of two ranks, CPU time of both", 1, 1),
        figure("only the exchange, wall time", 2, 0),
    ]


@contextmanager
def _pair(cores: Sequence[int], *, joined: bool) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start two processes, each on its own core; wait until they can take steps."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **place}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.ddp", RANKS if joined else ALONE, str(rank), str(core)],
                    env=variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for rank, core in enumerate(cores)
        ]
        try:
            for process in processes:
                _answer(process)
            yield processes
            for process in processes:
                _ask(process, END)
        except BaseException:
            for process in processes:
                process.kill()  # one rank would wait for the other
            raise


def _turn(processes: list["subprocess.Popen[str]"], work: str) -> tuple[float, float]:
    """Let both processes do the work of a turn; return the wall seconds of a step, and the CPU seconds of both."""
    began = time.perf_counter()
    for process in processes:
        _ask(process, work)
    cpu_s = sum(_answer(process) for process in processes)
    return (time.perf_counter() - began) / STEPS, cpu_s / STEPS


def _ask(process: "subprocess.Popen[str]", work: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{work}\n")
    process.stdin.flush()


def _answer(process: "subprocess.Popen[str]") -> float:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise subprocess.CalledProcessError(process.wait(), process.args)
    return float(line)


def _serve(rank: int, core: int, *, joined: bool) -> None:
    """Be one of the processes: do what each line of stdin says, and answer with its CPU seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a step says that it is alive
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    config = TrainConfig(
        model="pnasnet5mobile",
        image_size=SIDE,
        batch_size=IMAGES,
        micro_batch=IMAGES,
        lr=1e-4,
        log_interval=STEPS,
        device="cpu",
    )
    world_size, port = PAIR if joined else 1, int(os.environ["MASTER_PORT"])
    place = (rank, rank, world_size, world_size) if joined else (0, 0, 1, 1)
    task = WorkerTask(config, Path("unused"), "cpu", *place, master_port=port)
    runtime = open_device("cpu")
    device = runtime.open(task.local_rank)
    group = join_process_group(
        runtime, rank=task.rank, world_size=world_size, master_port=port, stall_timeout_s=config.stall_timeout_s
    )
    training = build_training(
        task, config, runtime, device, weights=None, num_classes=CLASSES, watchdog=make_watchdog(task), group=group
    )
    warm_up_ddp(training.parallel, lambda: blank_images(training))
    training.requests.listen()
    generator = torch.Generator().manual_seed(rank)
    batch = ImageBatch(
        torch.randint(256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (IMAGES,), generator=generator),
        torch.arange(IMAGES),
    )
    plan = plan_epoch(10**7, world_size=world_size, batch_size=IMAGES, accumulate=1, steps_limit=None)
    windows = train_steps(training, itertools.repeat(batch), plan, epoch=0, first_step=0, warmup_left=0)
    flat = torch.zeros(sum(parameter.numel() for parameter in training.network.parameters()))
    print(0.0, file=answers, flush=True)
    for line in sys.stdin:
        began = time.process_time()
        match line.strip():
            case "step":
                next(windows)
            case "exchange":
                for _ in range(STEPS):
                    dist.all_reduce(flat)
            case "end":
                break
        print(time.process_time() - began, file=answers, flush=True)
    training.requests.settle()
    leave_process_group(group)


BENCHMARK = Benchmark(
    name="ddp",
    title="Two ranks",
    method=f"pnasnet5mobile at {SIDE} px, {IMAGES} images a rank, one thread and one core for each process, over gloo. "
    f"A turn is {STEPS} steps.",
    measure=measure,
    packages=("torch",),
)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in {ALONE, RANKS}:
        _serve(int(sys.argv[2]), int(sys.argv[3]), joined=sys.argv[1] == RANKS)
    else:
        sys.exit(run(BENCHMARK))
