"""RAD as a partitioner of torch.compile: sketches of what crosses from forward to backward.

The joint graph of AOTAutograd is the linearized computational graph of the paper's section 3.
"""
