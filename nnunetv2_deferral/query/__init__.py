"""Which regions of which images to annotate next."""
