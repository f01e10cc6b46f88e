"""What the trainer and the launcher share: options, errors, help, files. It needs neither torch nor Kubernetes."""
