"""Paged KV: which block holds which positions of which slot. Plain Python; the bytes live in the ranks."""
