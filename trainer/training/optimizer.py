"""The optimizers: which parameters they update, with which weight decay, and what they keep of each parameter.

To add one, write a class like `Sgd` here, enter it in OPTIMIZERS and in its type, and add its name to `--optimizer`
(TrainConfig); docs/ascend.md lists the names of torch_npu and apex that it uses. Steps, precisions and checkpoints use
only torch's interface, and do not know the kind.
"""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from trainer.shared.config import TrainConfig

ParameterGroups = list[dict[str, Any]]


class _EagerSgd(torch.optim.SGD):
    """torch's SGD, never compiled: its methods without the wrappers that import torch._dynamo, half of torch's time."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)


class Sgd:
    """SGD with momentum, fused on every device."""

    def make(
        self, groups: ParameterGroups, config: TrainConfig, *, device: str, library: Any, captured: bool
    ) -> torch.optim.Optimizer:
        """Return the fastest implementation: apex's, torch_npu's (both keep the gradients in one buffer) or torch's.

        Args:
            groups: from `parameter_groups`; each has its own `weight_decay`.
            device: `npu`, `cuda` or `cpu`.
            library: the module whose optimizers the run's precision needs (apex's under O2); None for no such need.
            captured: the device captures the steps: only torch's reads its rate and whether to update from there.
        """
        if captured or (library is None and device != "npu"):
            lr = torch.tensor(config.lr).to(groups[0]["params"][0].device) if captured else config.lr
            return _EagerSgd(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        # torch_npu was loaded when the device was opened. Typed as Any: it has no stubs.
        source: Any = library or importlib.import_module("torch_npu").optim
        optimizer: torch.optim.Optimizer = source.NpuFusedSGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        return optimizer

    def first_state(self, parameter: nn.Parameter, config: TrainConfig) -> dict[str, Tensor]:
        """Return the tensors that the optimizer keeps of a parameter, with their values before the first step.

        A momentum of zero gives a first step the same bits as no momentum.
        """
        return {"momentum_buffer": torch.zeros_like(parameter)} if config.momentum else {}


OPTIMIZERS: dict[str, Sgd] = {"sgd": Sgd()}


def make_optimizer(
    network: nn.Module, config: TrainConfig, *, device: str, library: Any, captured: bool = False
) -> torch.optim.Optimizer:
    """Return the run's optimizer over all trainable parameters; see `Sgd.make` for the arguments."""
    groups = parameter_groups(network, weight_decay=config.weight_decay, decay_all=config.decay_all)
    return OPTIMIZERS[config.optimizer].make(groups, config, device=device, library=library, captured=captured)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step, on the device if the optimizer reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def begin_state(optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Set the optimizer's state to its values before the first step, in place if it exists already.

    Otherwise the first step would make the tensors, and a resumed run would find nothing to restore its own into.
    torch leaves them uninitialised if that first step is left out (2.14.1).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, tensor in OPTIMIZERS[config.optimizer].first_state(parameter, config).items():
                state = optimizer.state[parameter]
                if name in state:
                    state[name].copy_(tensor)
                else:
                    state[name] = tensor


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_all: bool) -> ParameterGroups:
    """Return the parameters in groups for the optimizer, each group with the `names` of its parameters.

    Without `decay_all`, batch norm and biases (one dimension) are not decayed.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [pair for pair in named if decay_all or pair[1].ndim > 1]
    others = [pair for pair in named if not (decay_all or pair[1].ndim > 1)]
    return [
        {"params": [parameter for _, parameter in pairs], "names": [name for name, _ in pairs], "weight_decay": decay}
        for pairs, decay in ((decayed, weight_decay), (others, 0.0))
        if pairs
    ]
