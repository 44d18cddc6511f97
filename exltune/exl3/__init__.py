"""The EXL3 format on a CPU: codebooks, trellis, Hadamard, LDLQ, and the tensors on disk."""
