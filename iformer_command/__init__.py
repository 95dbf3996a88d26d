"""The ``iformer`` command, separate from the package ``iformer``, whose import loads timm and torch and takes seconds.

Nothing in this package imports ``iformer`` before a verb runs.
"""
