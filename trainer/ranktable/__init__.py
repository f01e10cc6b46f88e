"""The rank table (hccl.json): read it, find this pod in it, and give HCCL a copy that it accepts.

MindCluster's controllers write the table into a ConfigMap or a file while pods start. So a reader meets tables that are
half written, not completed, wrong, or left over from a dead job. Nothing here knows about devices or torch.
"""

from trainer.ranktable.fields import is_ip
from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import NotReadyError, RankedDevice, RankTable, Server, parse
from trainer.ranktable.wait import wait_until_completed, write_regular

__all__ = [
    "Identity",
    "NotReadyError",
    "RankTable",
    "RankedDevice",
    "Server",
    "find_me",
    "is_ip",
    "parse",
    "wait_until_completed",
    "write_regular",
]
