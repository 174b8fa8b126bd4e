"""Descriptors: a window of audio becomes a vector whose cosine tells how alike two windows are."""

from .base import Descriptor, DescriptorSpec, load_descriptor, on_device

__all__ = ["Descriptor", "DescriptorSpec", "load_descriptor", "on_device"]
