"""Triton kernels. Modules in here are imported where a kernel is to run: Triton may be absent."""
