"""``python -m interp.cli`` is ``interp``."""

from interp.cli.application import main

main()
