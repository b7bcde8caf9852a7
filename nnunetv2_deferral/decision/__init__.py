"""What of an image is deferred to whom: expected gains, limits, and the route within them."""
