"""The explorer as a Space of the Hugging Face Hub, or in any other place that runs a program and shows its page.

The Space's variable MODELS names the models, separated by spaces: hf-hub:USER/NAME, or what else
``iformer explore --model`` takes. Without it the released iformer_small is shown.
"""

import os

from iformer.explorer.server import serve, serving

page = serving(
    os.environ.get("MODELS", "iformer_small").split(),
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),  # everybody may look at a Space
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
serve(page)
