"""PNASNet-5 training: the program that runs in the pod, or on one machine."""
