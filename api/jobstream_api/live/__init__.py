"""Live updates: the hub that listens to Redis once, and the streams that follow it."""
