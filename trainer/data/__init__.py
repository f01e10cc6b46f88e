"""Images from disk to the device: index, decode, augmentation, order, loader, and the `data` commands.

A sample's pixels depend only on (seed, epoch, sample): not on the loader processes, the number of devices, or the step
at which a run was resumed.
"""
