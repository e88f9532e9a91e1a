"""A budget in bytes, and the sketch, batch or layers that meet it."""
