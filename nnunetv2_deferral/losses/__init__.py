"""The training objective of DeferredSeg, Eqs. (4) to (10): one module per loss, combined in `objective`.

Losses are computed in float32 even under autocast, and do not depend on nnU-Net.
"""
