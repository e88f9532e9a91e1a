"""What the settings of the scripts may be: types, ranges, choices, checked before any work."""
