"""Training states on disk: never torn when written, and used only when every byte is right.

`reading` and `writing` need no torch: the process that starts the workers and `inspect` use them too. They do not know
what the tensors mean.
"""
