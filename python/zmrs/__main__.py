"""``python -m zmrs`` and the ``zmrs`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from zmrs.cli import run  # noqa: PLC0415  (so that importing this module costs nothing)
    except KeyboardInterrupt:  # before anybody listens for it
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
