"""Entry point of the command `fadepth`, which is also `python -m fadepth_core` and `python training/run.py`."""

import sys


def main() -> int:
    """Run the command; returns its exit status. Without the packages that it needs, say which to install."""
    try:
        from fadepth_core import cli
    except ImportError as error:
        print(f"error: {error}; this command needs: pip install 'fadepth_ros[train]'", file=sys.stderr)
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
