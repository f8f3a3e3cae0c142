"""Benchmarks: how fast jobstream is beside arq, beside other libraries, and beside what Redis makes possible."""
