"""Fingerprints: what the compiler made of each kernel for one GPU architecture, kept in git and compared exactly.

A fingerprint is evidence of change, not a time: registers, spills, shared memory and instructions have no noise, need
no GPU and say whether and how the machine code changed. They do not say whether it became slower; a longer kernel may
be the faster one. `collect` compiles (torch, triton); `stored` and `compare` only read (standard library).
"""
