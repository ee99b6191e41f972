"""LLM-MDE: monocular depth through language, from NYU raw dumps to a trained adapter."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_mde.inference.pretrained import DepthModel

__version__ = "0.1.0"
__all__ = ["DepthModel", "__version__"]


def __getattr__(name: str) -> object:
    # PEP 562: torch and the backbones' libraries load when the model is asked for.
    if name == "DepthModel":
        from llm_mde.inference.pretrained import DepthModel

        return DepthModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
