"""The promises of the emulated device, checked in a process that has it: test_device.py runs this file in one.

It is not collected with the other tests: the name of a device stays in a process for good.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
import torch_npu
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(autouse=True)
def _first_device() -> None:
    torch_npu.npu.set_device(0)
    torch_npu.npu.conv.allow_hf32 = False


@pytest.fixture(scope="module")
def hccl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(tmp_path_factory.mktemp("store") / "store"), 1
    )
    dist.init_process_group("hccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_views_and_writes_share_the_devices_memory() -> None:
    whole = torch.arange(12.0, device="npu").view(3, 4)
    whole[1].mul_(2)
    whole.t()[0].zero_()
    assert whole.cpu().tolist() == [[0, 1, 2, 3], [0, 10, 12, 14], [0, 9, 10, 11]]


def test_results_are_resized_and_overlap_is_kept() -> None:
    out = torch.empty(0, device="npu")
    torch.add(torch.ones(3, device="npu"), 1, out=out)
    assert out.tolist() == [2, 2, 2]
    assert out.resize_(5).shape == (5,)
    alias = torch.empty(0, device="npu").set_(out.untyped_storage(), 0, (5,), (1,))
    alias[0] = 7
    assert out[0].item() == 7


def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2, device="npu:0") + torch.ones(2, device="npu:1")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2, device="npu:0") + torch.ones(2)
    with pytest.raises(RuntimeError, match="107001"):
        torch_npu.npu.set_device(99)


@pytest.mark.parametrize("name", ["npu:0", "npu:3"])
def test_gradients_equal_the_cpus(name: str) -> None:
    torch.manual_seed(0)
    on_cpu = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    on_npu = copy.deepcopy(on_cpu).to(name)
    images = torch.randn(6, 3, 9, 9)
    on_cpu(images).square().sum().backward()
    on_npu(images.to(name)).square().sum().backward()
    for cpu, npu in zip(on_cpu.parameters(), on_npu.parameters(), strict=True):
        assert npu.grad is not None
        assert npu.grad.device == torch.device(name)
        assert cpu.grad is not None
        assert cpu.grad.equal(npu.grad.cpu())


def test_a_seed_draws_the_same_as_on_a_cpu_and_a_state_can_be_restored() -> None:
    torch.default_generator.manual_seed(3)
    torch_npu.npu.manual_seed(3)
    assert torch.rand(5).equal(torch.rand(5, device="npu").cpu())
    assert F.dropout(torch.ones(50), 0.5).equal(F.dropout(torch.ones(50, device="npu"), 0.5).cpu())
    state = torch_npu.npu.get_rng_state()
    drawn = torch.rand(4, device="npu")
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        torch.rand(4, device="npu")
    torch_npu.npu.set_rng_state(state)
    assert drawn.equal(torch.rand(4, device="npu"))


def test_convolutions_round_operands_in_fp32_where_they_may() -> None:
    fine, one = torch.full((1, 1, 1, 1), 1 + 2.0**-13), torch.ones(1, 1, 1, 1)
    results = []
    for allowed in (False, True):
        torch_npu.npu.conv.allow_hf32 = allowed
        assert torch_npu.npu.conv.allow_hf32 is allowed
        results.append(F.conv2d(fine.to("npu"), one.to("npu")).item())
    assert results == [1 + 2.0**-13, 1.0]
    assert torch_npu.npu.matmul.allow_hf32 is False
    with pytest.raises(TypeError, match="must be a bool"):
        torch_npu.npu.conv.allow_hf32 = "enable"


def test_autocast_computes_convolutions_in_fp16_and_losses_in_fp32() -> None:
    layer = nn.Conv2d(3, 4, 3).to("npu")
    with torch_npu.npu.amp.autocast():
        out = layer(torch.randn(2, 3, 8, 8, device="npu"))
        assert out.dtype == torch.float16
        assert F.log_softmax(out.flatten(1), 1).dtype == torch.float32


# torch 2.9.0's own loader passes the argument.
@pytest.mark.filterwarnings("ignore:The argument 'device' of Tensor:DeprecationWarning")
def test_batches_go_through_pinned_memory_from_loader_processes() -> None:
    data = TensorDataset(torch.arange(8))
    batches = [batch for (batch,) in DataLoader(data, 4, num_workers=1, pin_memory=True)]
    assert all(batch.is_pinned() for batch in batches)
    stream = torch_npu.npu.Stream(torch.device("npu", 0))
    with torch_npu.npu.stream(stream):
        moved = [batch.to("npu", non_blocking=True) for batch in batches]
    torch_npu.npu.current_stream().wait_stream(stream)
    assert torch.cat(moved).tolist() == list(range(8))


def test_memory_in_use_is_counted_by_device() -> None:
    before = torch_npu.npu.memory_allocated(2)
    held = torch.empty(1 << 20, dtype=torch.uint8, device="npu:2")
    assert torch_npu.npu.memory_allocated(2) == before + (1 << 20)
    assert torch_npu.npu.max_memory_allocated(2) >= before + (1 << 20)
    del held
    assert torch_npu.npu.memory_allocated(2) == before


def test_tensors_are_saved_and_loaded_elsewhere(tmp_path: Path) -> None:
    torch.save(torch.arange(3, device="npu:1"), tmp_path / "tensor.pt")
    assert torch.load(tmp_path / "tensor.pt", map_location="npu:0").device == torch.device("npu:0")


def test_the_operators_of_the_seeds_loss_compute_a_cross_entropy() -> None:
    logits, labels = torch.randn(4, 7, device="npu"), torch.tensor([1, 0, 6, 2], device="npu")
    one_hot = torch_npu.npu_one_hot(labels.int(), -1, 7, 1, 0)
    loss = torch_npu.npu_softmax_cross_entropy_with_logits(logits, one_hot)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize(
    ("tensor", "op", "message"),
    [
        (
            torch.ones(1, dtype=torch.float64, device="npu"),
            dist.ReduceOp.SUM,
            "Unsupported data type for HCCL process group",
        ),
        (torch.ones(1, device="npu"), dist.ReduceOp.AVG, "Cannot use this ReduceOp"),
        (torch.ones(1), dist.ReduceOp.SUM, "No backend type associated with device type cpu"),
    ],
)
@pytest.mark.usefixtures("hccl")
def test_hccl_refuses_tensors_and_operations_that_it_cannot_reduce(
    tensor: Tensor, op: dist.ReduceOp, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        dist.all_reduce(tensor, op)


@pytest.mark.usefixtures("hccl")
def test_hccl_reduces_and_gathers() -> None:
    tensor = torch.arange(3, device="npu")
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    assert work.get_future().wait()[0].device.type == "npu"
    parts = [torch.empty_like(tensor)]
    dist.all_gather(parts, tensor)
    assert parts[0].tolist() == [0, 1, 2]


def _fused(size: int = 4) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(size, device="npu"))
    optimizer: torch.optim.Optimizer = torch_npu.optim.NpuFusedSGD([weight], lr=0.1, momentum=0.9)
    return weight, optimizer


def test_a_fused_optimizer_refuses_to_set_its_gradients_to_none() -> None:
    _, optimizer = _fused()
    with pytest.raises(ValueError, match="set_to_none is not supported"):
        optimizer.zero_grad(set_to_none=True)


def test_a_fused_optimizer_cannot_combine_gradients_in_buckets() -> None:
    weight, optimizer = _fused()
    weight.grad = torch.ones(8, device="npu")[:4]
    with pytest.raises(RuntimeError, match="view of a larger storage"):
        optimizer.step()


def test_a_scalers_state_must_have_its_dynamic_switch() -> None:
    scaler = torch_npu.npu.amp.GradScaler(dynamic=False)
    scaler.scale(torch.ones((), device="npu"))
    state = scaler.state_dict()
    assert state["dynamic"] is False
    with pytest.raises(KeyError, match="dynamic"):
        scaler.load_state_dict({name: value for name, value in state.items() if name != "dynamic"})


def test_a_dynamic_scaler_skips_a_step_that_overflowed_and_a_static_one_does_not_check() -> None:
    for dynamic, expected in ((True, 1.0), (False, float("-inf"))):
        weight, optimizer = _fused(1)
        scaler = torch_npu.npu.amp.GradScaler(init_scale=2.0, dynamic=dynamic)
        scaler.scale((weight * torch.inf).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weight.item() == expected
        assert scaler.get_scale() == (1.0 if dynamic else 2.0)


def _captured(work: Callable[[], object]) -> Callable[[], None]:
    graph = torch_npu.npu.NPUGraph()
    with torch_npu.npu.graph(graph, pool=torch_npu.npu.graph_pool_handle(), capture_error_mode="thread_local"):
        assert torch_npu.npu.is_current_stream_capturing()
        work()
    assert not torch_npu.npu.is_current_stream_capturing()
    replay: Callable[[], None] = graph.replay
    return replay


def test_a_capture_changes_nothing_and_a_replay_does_the_work_with_new_values() -> None:
    inputs, sums = torch.ones(4, device="npu"), torch.zeros(4, device="npu")
    results = []

    def work() -> None:
        sums.add_(inputs)
        results.append(sums.view(2, 2)[1] * 2 + torch.rand(2, device="npu"))

    torch_npu.npu.manual_seed(1)
    state = torch_npu.npu.get_rng_state()
    replay = _captured(work)
    assert sums.tolist() == [0, 0, 0, 0]
    assert torch_npu.npu.get_rng_state().equal(state)
    for number in (1, 2):
        inputs.fill_(number)
        torch_npu.npu.manual_seed(number)
        replay()
        torch_npu.npu.manual_seed(number)
        draw = torch.rand(2, device="npu")
        assert results[0].equal(torch.full((2,), 2 * [1, 3][number - 1], device="npu") + draw)
    assert sums.tolist() == [3, 3, 3, 3]


def test_a_replayed_training_step_equals_an_eager_one() -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(4, 5)).to("npu")
        lr = torch.tensor(0.1, device="npu")
        return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)

    def train(*, captured: bool) -> list[Tensor]:
        model, optimizer = build()
        images = torch.empty(6, 3, 9, 9, device="npu")

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            model(images).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        take: Callable[[], None] = step
        for number in range(5):
            images.copy_(torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(number)))
            optimizer.param_groups[0]["lr"].fill_(0.1 / (number + 1))
            if captured and number == 1:  # the first step makes gradients and momentum
                take = _captured(step)
            torch_npu.npu.manual_seed(number)
            take()
        return [tensor.cpu() for tensor in model.state_dict().values()]

    assert all(map(torch.equal, train(captured=False), train(captured=True)))


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("read", lambda tensor: tensor.sum().item()),
        ("copy", lambda tensor: tensor.cpu()),
        ("seed", lambda _: torch_npu.npu.manual_seed(1)),
        ("wait", lambda _: torch_npu.npu.synchronize()),
        ("event", lambda _: torch_npu.npu.Event(enable_timing=True).record()),
    ],
)
def test_a_capture_refuses_what_needs_the_host(name: str, work: Callable[[Tensor], object]) -> None:
    tensor = torch.ones(2, device="npu")
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        _captured(lambda: work(tensor.add_(1)))
    assert tensor.tolist() == [1, 1], name


@pytest.mark.usefixtures("hccl")
def test_a_capture_refuses_a_collective_and_ends_in_order() -> None:
    tensor = torch.ones(2, device="npu")
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        _captured(lambda: dist.all_reduce(tensor))
    dist.all_reduce(tensor)
