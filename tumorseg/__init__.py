"""Segment brain tumours in MRI slices with a U-Net."""

__version__ = "0.3.0"

import lazy_loader as _lazy

# The names of the front door stand in __init__.pyi; each loads its module when it is first asked for
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
