"""Triton kernels, one op a file, none of which imports anything of ours; installed as `fastserve.kernels`."""
