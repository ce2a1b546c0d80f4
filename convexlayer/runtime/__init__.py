"""What kernels run on: the persistent cache of their machine code, threads, and buffers."""
