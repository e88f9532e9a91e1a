"""Triton kernels of products and of what is kept. Imported where one runs: Triton may be absent."""
