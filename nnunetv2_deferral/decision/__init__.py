"""Deferral decisions: expected gains, limits, and the route within them."""
