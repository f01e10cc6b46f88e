"""The trainer's command line with samples of the hardware twenty times a second, for short runs."""

import sys

from trainer.cli import main
from trainer.environment import sampler

sampler.INTERVAL_S = 0.05
sys.exit(main(sys.argv[1:]))
