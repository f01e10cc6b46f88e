"""Who this node is, which devices it may use, and where the master is; without torch, and starting nothing."""

from trainer.topology.discover import Topology, Worker, discover
from trainer.topology.visible import Visible, visible_devices

__all__ = ["Topology", "Visible", "Worker", "discover", "visible_devices"]
