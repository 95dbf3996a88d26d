"""The ``iformer`` command, apart from the package ``iformer``, whose import loads timm and torch and takes seconds.

Nothing here imports ``iformer`` before a verb runs.
"""
