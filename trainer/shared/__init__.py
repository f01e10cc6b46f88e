"""The code that both programs use: options, errors, help, files. It needs neither torch nor Kubernetes."""
