"""Analytic kernels for label maps: one slab of a call, forward and backward, an activation a file."""
