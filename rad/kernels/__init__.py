"""Triton kernels of operators and sketches. They take tensors and plain numbers, no sketches.

Imported inside the functions that launch them, since Triton may be absent; `rad.backends` says
when. The kernels of draws lie in `rad.draws`, those of the simulation in `rad.pde.cuda`.
"""
