"""Following containers' logs through the Kubernetes API without losing or repeating a line.

A server cannot send what it no longer has; every such loss is announced.

Why the launcher has two HTTP stacks: requests and watches go through urllib3 (`launcher.kube`), which the official
client brings along and which is enough for a few JSON answers. A log is different. The API server sends each of its
lines as an HTTP chunk, and every HTTP client that takes chunks apart in Python spends its whole time on that; libcurl
(`transport`, by pycurl) does it in C. libcurl also lets one thread wait for the socket and for the user's Ctrl-C at the
same time, and a reader that is slow slows the server down instead of filling the memory. Neither library is imported
before a command connects.
"""
