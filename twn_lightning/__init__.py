"""Think When Needed: train, evaluate and use multimodal embedding models that think only when thinking helps."""

__version__ = "0.1.0"
