"""Planning: the sketch, batch or division among layers that meets a memory budget.

The last package of the library; a new way to spend a budget goes here.
"""
