"""The PDE engine for CPUs: chunks of steps in compiled loops."""
