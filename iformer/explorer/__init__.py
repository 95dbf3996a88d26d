"""A web page on which a picture is taken apart: what a model predicts, which frequencies it uses, what its branches do.

``workbench`` keeps models and results. Each panel has a module with its logic, which returns HTML and is tested without
a browser: ``classify``, ``frequencies``, ``branches``, ``ramp`` and ``scenes``. ``page``, ``frame`` and ``tabs``
arrange them with Gradio, and ``server`` starts the page.
"""
