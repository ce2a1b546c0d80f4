"""Runtime support of the kernels: persistent kernel cache, thread pool, and buffer pool."""
