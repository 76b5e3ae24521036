"""Triton kernels, one op a file; installed as `fastserve.kernels`. GPU kernels are not part of this version."""
