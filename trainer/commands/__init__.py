"""The trainer's other commands: `data`, `env`, `inspect`, `ranktable`. Only these modules and `trainer.cli` print."""
