"""Processes: what signals do to a program, and to those that work for a sweep."""
