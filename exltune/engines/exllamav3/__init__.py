"""The same work on CUDA, through exllamav3 itself: the only package that imports exllamav3's model code."""
