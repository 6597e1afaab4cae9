"""``python -m interp.cli`` is ``interp``."""

from interp.cli.application import main

if __name__ == "__main__":
    main()
