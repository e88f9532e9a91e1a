"""Bits and small integers, packed without gaps: formats of memory, which know no sketch.

Only `rad.errors`, `rad.dtypes` and `rad.backends` come before it.
"""
