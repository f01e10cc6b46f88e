"""A STAND-IN for apex for Ascend, for tests: the documented signatures of what the trainer uses, and O2's arithmetic.

The original has no package on an index, and its real behaviour on an NPU is unknown here. This one logs its calls in
NPU_EMULATED_LOG, refuses the calls that the original documents as refused, and trains on the emulated device.
"""
