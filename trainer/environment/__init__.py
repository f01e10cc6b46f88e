"""This machine's versions, NPUs, settings and limits, and which of them do not fit together.

`facts` reads them from files, `npu-smi` and the environment, `parsing` understands their formats, `versions` knows
which versions go together, and `findings` judges. Nothing here imports torch: it must work where torch does not.
"""
