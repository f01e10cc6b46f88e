"""This node's place in the job, its devices, and the master's address; without torch, and without starting anything."""

from trainer.topology.addresses import check_addresses
from trainer.topology.discover import Topology, Worker, discover, follows_options
from trainer.topology.visible import Visible, visible_devices

__all__ = ["Topology", "Visible", "Worker", "check_addresses", "discover", "follows_options", "visible_devices"]
