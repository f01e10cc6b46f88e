"""What both programs know of a run: its folder of checkpoints, and the modes that can be continued."""

CHECKPOINTS_FOLDER = "checkpoints"
"""The folder in a run's folder that holds its checkpoints and weights."""
TRAINING = ("full", "finetune")
"""The modes that train, and that a checkpoint can continue."""
