"""Depthwise convolutions fused into one Triton launch: what maps (`fused_depthwise`) and series (`fused_series`) share.

    precision    the accuracy classes
    operators    the operator, its derivative and its fake: y, and what backward needs of x
    share        what one program is given

A form of the transform is a folder with the same files: kernels, matrices (and sizes, in geometry), launches.
"""
