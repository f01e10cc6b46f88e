"""What `python -m trainer prove` does: small checks of the machine, of each device and of all together.

`catalogue` lists the checks, `runner` runs them in separate processes, and `check` has the types of both.
"""
