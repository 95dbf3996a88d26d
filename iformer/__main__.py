"""``python -m iformer``, which is the ``iformer`` command."""

from iformer_command.cli import main

if __name__ == "__main__":  # and not in the worker processes that import this module again
    main()
