"""What the fork server imports before it starts processes; see :mod:`pools`."""

import pools

pools.preload()
pools.take_over()
