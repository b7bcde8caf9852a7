"""What is connected in a route, whatever is looked at together."""

from skimage.measure import label

from nnunetv2_deferral.decision.regions import describe_regions


def connected_pieces(route, *, spacing_mm):
    """The connected components of each expert's voxels, with full connectivity, as regions."""
    return describe_regions(label(route, background=0, connectivity=route.ndim), route, spacing_mm=spacing_mm)
