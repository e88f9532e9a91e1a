"""A model converted: its layers, who reads what, and what is said about it."""
