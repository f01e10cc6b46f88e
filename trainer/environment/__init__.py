"""What a run finds here: versions, NPUs, settings and limits, and what of it does not fit together.

`facts` reads it from files, `npu-smi` and the environment, `parsing` understands their formats, `versions` holds which
versions go together, and `findings` judges. Nothing here imports torch: it has to answer where torch cannot be loaded.
"""
