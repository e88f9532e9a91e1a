"""Conversion of a torch.nn model to RAD layers, and reports and audits of what it then keeps.

Which layer takes whose place is `rad.nn.registry`'s; here is what concerns a model as a whole.
"""
