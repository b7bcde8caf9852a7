"""The training objective of DeferredSeg, Eqs. (4) to (10): one loss a module, joined in `objective`.

Every loss takes log-probabilities from :func:`nnunetv2_deferral.routing.routing_log_probabilities`, hence float32
whatever autocast does, and knows nothing of nnU-Net.
"""
