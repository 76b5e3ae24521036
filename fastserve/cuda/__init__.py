"""A rank on a GPU: the forward pass of fastserve.models on CUDA tensors, captured in graphs. Needs torch."""
