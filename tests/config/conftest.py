from ..engine.conftest import tiny, tiny_flags

__all__ = ["tiny", "tiny_flags"]
