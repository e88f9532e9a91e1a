"""Benchmarks: the programs that are compared, their timing in turns, and their memory."""
