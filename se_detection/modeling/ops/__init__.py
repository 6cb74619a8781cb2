"""The operators of SE-ResNets: the residual gate and its Triton kernels, and the folded frozen convolution."""
