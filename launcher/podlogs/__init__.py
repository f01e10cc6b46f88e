"""Following containers' logs through the Kubernetes API without losing or repeating a line.

What a server no longer has cannot be had; every such loss is announced. Nothing in here knows the Kubernetes client.
"""
