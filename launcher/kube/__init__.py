"""The Kubernetes API, as far as a launcher needs it: plain dicts in and out, typed errors, one way for every version.

The official client finds the cluster and its credentials (`connection`); requests are our own (`api`), because its
typed bodies refuse fields that they do not know and its `Watch` loses and repeats events (facts differ by version).
"""
