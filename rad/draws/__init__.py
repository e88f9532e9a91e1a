"""Counter-based random numbers: one hash in torch operators, compiled loops and Triton.

Whatever is drawn from a key belongs here. It imports `rad.packing`, and no sketch.
"""
