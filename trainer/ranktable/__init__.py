"""The rank table (hccl.json): read it, find this pod in it, and give HCCL a copy that it accepts.

MindCluster's controllers write the table into a ConfigMap or a file while pods start. So a reader meets tables that are
half written, not completed, wrong, or left over from a dead job. Nothing here knows about devices or torch.
"""
