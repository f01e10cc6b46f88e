"""The commands of `python -m launcher`, a module for each errand; each is imported when it is typed.

A command is short: resolve, ask the backend, print. What needs pydantic or a cluster is imported by the command that
uses it.
"""
