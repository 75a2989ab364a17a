"""What the fork server of `warm.py` imports: libraries, and none of this repository's modules stays."""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from space_core.stubs import unwritten

with unwritten():
    import gradio  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

for name in [name for name in sys.modules if name.split(".")[0] == "space_core"]:
    del sys.modules[name]
