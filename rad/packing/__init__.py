"""Bits and small integers without gaps."""
