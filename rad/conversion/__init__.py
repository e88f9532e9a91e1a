"""Conversion of a torch.nn model to RAD layers: `convert`, and the reports on what it did.

Which layer takes whose place is `rad.nn.registry`'s; here is what concerns a model as a whole.
"""
