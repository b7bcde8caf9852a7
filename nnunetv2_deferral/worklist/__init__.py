"""The worklist: deferred regions in the order in which people should look at them."""
