"""`python -m launcher`: see `launcher.cli`."""

import sys

if __name__ == "__main__":
    try:
        from launcher.cli import main

        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
