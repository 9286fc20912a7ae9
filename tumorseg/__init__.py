"""Segment brain tumours in MRI slices with a U-Net."""

__version__ = "0.1.0"
