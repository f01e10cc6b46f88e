"""The kinds of device. This file imports nothing, because `runtime_env` and `runtime_errors` must not import torch."""
