"""LLM-MDE: monocular depth through language, from NYU raw dumps to a trained adapter."""

__version__ = "0.1.0"
