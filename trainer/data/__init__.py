"""Images from disk to the device: index, decode, augmentation, order, loader, and the `data` commands.

What a sample looks like depends on (seed, epoch, sample) and on nothing else: not on the loader processes, not on the
number of devices, not on where a run was resumed.
"""
