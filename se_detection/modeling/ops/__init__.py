"""The operators of SE-ResNets: the residual gate with its Triton kernels, and the convolution with a folded norm."""
