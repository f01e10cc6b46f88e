"""The Kubernetes objects of a job: labels, templates, overlays."""
