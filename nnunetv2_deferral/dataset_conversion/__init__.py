"""Published datasets in nnU-Net's raw format, with the masks of real experts where there are any."""
