"""Counter-based random numbers: one hash in torch operators, compiled loops and Triton."""
