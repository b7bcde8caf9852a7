"""Segmentation that is calibrated to several raters: the number of raters who mark a structure as an ordinal target."""
