"""Kernels at the speed of the machine: Numba functions over addresses, whose inner loops are written in vector instructions.

Every file here is compiled as a whole, once, by native.py, which keeps the machine code on disk; nothing here is imported after that. What
they compute is said, plainly, by reference.py and reference_int8.py, and tests hold them to it.
"""
