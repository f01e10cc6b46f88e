"""Takes the port at which the ranks will meet, if it can, before the store of rank 0 answers; if not, it says so.

A worker imports it first; see `tests.local.forked_trainer`.
"""

import os
import socket

from trainer.records.run_records import say

try:
    thief = socket.create_server(("", int(os.environ["MASTER_PORT"])))
except OSError:
    say("the port is held")
