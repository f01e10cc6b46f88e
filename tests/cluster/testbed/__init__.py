"""A whole Kubernetes on one Linux machine, for tests and for trying things out; only its NPUs are simulated.

It lives in separate namespaces (processes, mounts, network), so that it changes nothing on the machine and leaves
nothing behind. When the first process of its process namespace ends, the kernel ends and unmounts all the rest.
"""
