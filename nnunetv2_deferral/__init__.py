"""Pixel-wise learning-to-defer for nnU-Net v2.

The public names are imported from their modules on first use (see `__init__.pyi`), so that importing the package is
fast. Only :class:`PredictionFolder` and :func:`predict_array` import nnU-Net.
"""

import lazy_loader

__version__ = "0.4.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
