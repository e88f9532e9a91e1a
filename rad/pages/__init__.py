"""The documents' numbers: tables and figures in prose, each made from a file of `results/`."""

from rad.pages.blocks import Page, namespace
from rad.pages.untraced import untraced

__all__ = ["Page", "namespace", "untraced"]
