"""The Kubernetes objects of a job."""
