"""`python3 -m spectralbench.gpu`: everything that the first minutes on a CUDA machine should tell, in order.

    ceilings -> targets -> memory -> correctness -> replicates -> breadth -> tests marked cuda -> summary

Needs torch; what else cannot be imported is said and left out. Every stage leaves a file the moment it is done and is
bounded by a share of the time budget; a second run with the same folder goes on where the first one stopped.
"""
