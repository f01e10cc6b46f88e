"""A whole Kubernetes on one Linux machine, for tests and for trying things out; only its NPUs are simulated.

It lives in namespaces of its own (processes, mounts, network), so that it touches nothing of the machine and leaves
nothing behind: when the first process of its process namespace ends, the kernel ends and unmounts all the rest.
"""
