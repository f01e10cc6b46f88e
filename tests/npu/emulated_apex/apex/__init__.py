"""A STAND-IN for apex for Ascend, for tests: the documented signatures of what the trainer uses, and O2's arithmetic.

The original has no package on an index. What it really does on an NPU is not known here; this one notes its calls in
NPU_EMULATED_LOG, refuses what the original documents as refused, and trains on the emulated device.
"""
