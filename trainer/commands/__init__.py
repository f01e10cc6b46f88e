"""The trainer's side commands: `data`, `env`, `inspect`, `ranktable`."""
