"""The PDE engine for GPUs: all steps in Triton kernels."""
