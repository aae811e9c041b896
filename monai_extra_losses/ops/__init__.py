"""The kernels behind the losses: sums and their analytic gradients."""
