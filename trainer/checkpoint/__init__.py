"""Training states on disk: written so that none is ever torn, and read only when every byte is right.

`files` keeps and finds them without torch, for the process that starts the workers and for `inspect`; it knows nothing
of what the tensors mean.
"""
