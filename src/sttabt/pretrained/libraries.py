"""Which library a model is built by. Imports none of them, and no torch."""

from __future__ import annotations

from sttabt.settings import ModelSettings
from sttabt.system.packages import need


def check_libraries(model: ModelSettings) -> None:
    """Raises UserError where the library that builds the model is not installed."""
    for name in ("timm", "lvvit"):
        if value := getattr(model, name):
            need("timm", f"model.{name}={value}")
    if model.huggingface:
        what = f"model.huggingface={model.huggingface}"
        need("transformers", what)
        if model.patch_size:  # a vision transformer, whose weights go into timm's modules
            need("timm", what)
