"""Entry point of the command `fadepth`, which is also `python -m fadepth_core` and `python training/run.py`."""

import sys


def main() -> int:
    """Run the command; returns its exit status. If a package is missing, print how to install it."""
    try:
        from fadepth_core import cli
    except ImportError as error:
        print(f"error: {error}; fadepth needs: pip install 'fadepth_ros[train]'", file=sys.stderr)
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
